"""The configurations in `configs/` are what they say, and are accepted but for the weights."""

from dataclasses import replace
from pathlib import Path

import pytest

from alp_megatron.check.validate import check_settings
from alp_megatron.config.load import load_config
from alp_megatron.hf.shape import read_model_shape
from alp_megatron.weights.quantize.scheme import UNQUANTIZED, scheme_of
from tests.support.repository_configs import (
    CONFIGS,
    ROOT,
    RUN_FILES,
    SWEEP_FILES,
    sweep_members,
)

# Billions of parameters as the model cards or their index files give them; docs/models.md has the
# sources. Their last digit is the precision.
PUBLISHED = {
    "qwen2.5-0.5b": "0.49",
    "qwen2.5-1.5b": "1.54",
    "qwen2.5-math-1.5b": "1.54",
    "qwen2.5-7b": "7.62",
    "qwen2.5-32b": "32.763876352",
    "qwen2.5-72b": "72.7",
    "qwen3-4b": "4.0",
    "qwen3-8b": "8.2",
    "qwen3-30b-a3b": "30.5",
    "qwen3-235b-a22b": "235",
    "llama3.1-8b": "8.03",
    "llama3.1-70b": "70.6",
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_every_model_has_its_published_size():
    found = {path.parent.name for path in CONFIGS.glob("models/*/config.json")} - {"arithmetic"}
    assert found == PUBLISHED.keys()
    for name, published in PUBLISHED.items():
        digits = len(published.partition(".")[2])
        count = read_model_shape(CONFIGS / "models" / name).num_parameters
        assert f"{count / 1e9:.{digits}f}" == published, name


def test_activated_parameters_of_the_mixtures():
    """'A3B' and 'A22B' count the experts that a token passes, the embeddings included."""
    for name, published in (("qwen3-30b-a3b", 3.3), ("qwen3-235b-a22b", 22.0)):
        shape = read_model_shape(CONFIGS / "models" / name)
        experts = shape.experts
        idle = (experts.num_experts - experts.num_experts_per_tok) * shape.num_hidden_layers
        expert = 3 * shape.hidden_size * experts.moe_intermediate_size
        assert (shape.num_parameters - idle * expert) / 1e9 == pytest.approx(published, abs=0.2)


def test_transformers_reads_the_same_models():
    """Its meta-device models, from our config.json cut to two layers, have as many parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for name in PUBLISHED:
        directory = CONFIGS / "models" / name
        config = AutoConfig.from_pretrained(directory)
        config.num_hidden_layers = 2
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        count = sum(p.numel() for p in model.parameters())
        assert count == replace(read_model_shape(directory), num_hidden_layers=2).num_parameters


@pytest.mark.parametrize("name", RUN_FILES)
def test_run_is_accepted(name):
    config = load_config(name)
    _accepted(config)
    folder = Path(name).parent.name
    if folder in PUBLISHED:
        gpus = int(Path(name).stem.partition("x")[0])
        assert config.runtime.world_size == gpus
        assert config.model.path == f"configs/models/{folder}"
        assert config.run_dir == f"runs/{folder}-{Path(name).stem}"


def test_members_of_the_sweeps_are_accepted():
    members = sweep_members()
    assert len(members) >= 20
    for name, config in members.items():
        if config.model.path.startswith("/"):  # a copy of the whole model, of the size of its base
            assert Path(config.model.path).name.lower() == "qwen2.5-7b", name
            config.model.path = "configs/models/qwen2.5-7b"
        _accepted(config)


def test_the_sweeps_that_there_are():
    assert [Path(name).stem for name in SWEEP_FILES] == [
        "layer_range",
        "method_by_seed",
        "multi_node",
        "sigma_by_perturb_lr",
        "staleness_by_quantization",
    ]


def test_released_batches():
    """The numbers of updates a step that the releases have: 16 and 4."""
    for folder, updates in (("single_turn", 16), ("multi_turn", 4)):
        names = [name for name in RUN_FILES if f"/{folder}/" in name]
        assert len(names) >= 7
        for name in names:
            config = load_config(name)
            rollout = config.rollout
            samples = rollout.prompts_per_step * rollout.samples_per_prompt
            assert samples / config.trainer.global_batch_size == updates, name
            assert config.rollout.temperature == 1.0 and config.trainer.lr == 1e-6


def _accepted(config):
    shape = read_model_shape(config.model.path)
    check_settings(config, shape)
    if config.rollout.quantization != UNQUANTIZED:
        assert not scheme_of(shape.tensor_shapes(), config.rollout.quantization, ()).unfit
