"""A conversion that went wrong is found, and each tensor named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alp_megatron.cli import main
from alp_megatron.config.schema import Config, ModelConfig, RuntimeConfig
from alp_megatron.conversion.parameters import hf_rows, parameters_of
from alp_megatron.conversion.verify import LOGPROB_TOLERANCE, Verification
from alp_megatron.errors import RunError
from alp_megatron.hf.shape import read_model_shape
from tests.support.models import SHAPES, make_model
from tests.support.trips import to_megatron

SHAPE = SHAPES["qwen3_moe"]
ALTERED = {
    "model.layers.2.mlp.experts.3.up_proj.weight": 1,
    "model.layers.0.self_attn.k_proj.weight": 48,
    "lm_head.weight": 1,
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A model, its checkpoint, and a copy of the model in which three tensors differ."""
    place = tmp_path_factory.mktemp("verify")
    model = make_model(place / "model", SHAPE)
    megatron = to_megatron(model, place / "megatron", tensor_parallel=2)
    altered = shutil.copytree(model, place / "altered")
    tensors = load_file(altered / "model.safetensors")
    for name in ALTERED:
        tensor = tensors[name]
        if ALTERED[name] == 1:  # the lowest bit of one element
            tensor.view(-1)[-1:].view(torch.int32).bitwise_xor_(1)
        else:  # a row is another's
            tensor[3] = tensor[4]
    save_file(tensors, altered / "model.safetensors", metadata={"format": "pt"})
    return Path(model), megatron / "state", altered


def verification(model_dir: Path, mode: str = "full") -> Verification:
    config, shape = Config(model=ModelConfig(path=str(model_dir))), read_model_shape(model_dir)
    return Verification(mode, config, shape, parameters_of(shape))


@pytest.mark.parametrize("workers", [1, 2])
def test_each_altered_tensor_is_named(converted, capsys, workers):
    model, state, altered = converted
    verification(model).tensors(model, state, workers)
    capsys.readouterr()
    with pytest.raises(RunError, match="3 tensors changed in the conversion"):
        verification(altered).tensors(altered, state, workers)
    report = sorted(capsys.readouterr().err.splitlines())
    assert report == sorted(f"FAILED {n}: {count} elements differ" for n, count in ALTERED.items())


def test_a_wrong_conversion_leaves_no_output(converted, tmp_path, capsys, monkeypatch):
    """Up and gate exchanged: exit code 1, the tensors named, nothing made."""
    monkeypatch.setattr("alp_megatron.conversion.parameters.hf_rows", exchanged_rows)
    arguments = ["--hf", str(converted[0]), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(["convert", "hf-to-megatron", *arguments]) == 1
    assert "FAILED model.layers.0.mlp.experts.0.gate_proj.weight" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def exchanged_rows(parameter, start, stop):
    names = dict(zip(parameter.hf_names, reversed(parameter.hf_names), strict=True))
    for name, low, high in hf_rows(parameter, start, stop):
        yield names[name], low, high


def test_a_large_model_is_sampled(converted, capsys, monkeypatch):
    """One of each kind of parameter in the layers, and all outside them."""
    monkeypatch.setattr("alp_megatron.conversion.verify.ALL_TENSORS_UP_TO", 0)
    verification(converted[0], "auto").tensors(converted[0], converted[1], workers=1)
    assert "a sample of 12 Megatron parameters" in capsys.readouterr().out
    with pytest.raises(RunError, match="lm_head.weight"):
        verification(converted[2], "auto").tensors(converted[2], converted[1], workers=1)


@pytest.mark.parametrize(("which", "expected"), [(0, True), (2, False)])
def test_logprobs(workers, converted, tmp_path, which, expected):
    """Megatron's and transformers' are equal for the same weights, and not for others."""
    config = Config(
        model=ModelConfig(path=str(converted[which]), expert_model_parallel_size=2),
        runtime=RuntimeConfig(world_size=2),
    )
    result = tmp_path / "result.json"
    workers.run(
        "alp_megatron.conversion.logits_job:largest_difference",
        config,
        2,
        state_dir=str(converted[1]),
        result=str(result),
    )
    largest = json.loads(result.read_text())["largest_difference"]
    assert (largest <= LOGPROB_TOLERANCE) == expected, largest
