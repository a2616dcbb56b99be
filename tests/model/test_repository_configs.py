"""Every configuration in `configs/` builds its model in its layout, on the meta device."""

import pytest

from alp_megatron.config.layout import world_size
from alp_megatron.estimate.memory import held_by_stage
from alp_megatron.hf.shape import read_model_shape
from tests.support.layouts import config_for
from tests.support.repository_configs import ROOT, run_configs, sweep_members


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_models_build_in_their_layouts(workers, tied_model):
    """Summed over TP x PP x EP each has the model's parameters, and every layer its sigma.

    What a rank of each stage holds is what `plan` counts.
    """
    layouts = {}
    for config in [*run_configs().values(), *sweep_members().values()]:
        if config.model.path.startswith("/"):  # multi_node names a copy of this model
            config.model.path = str(ROOT / "configs/models/qwen2.5-7b")
        config.model.path = str(ROOT / config.model.path)
        config.runtime.world_size = world_size(config)
        layout = config.model.model_dump(exclude={"logprob_chunk_tokens", "recompute_granularity"})
        key = str(layout | {"layers": config.perturbation.layer_end})
        if key not in layouts or world_size(layouts[key]) > world_size(config):
            layouts[key] = config  # more replicas of the same build alike
    assert len(layouts) >= 12
    configs = list(layouts.values())
    (built,) = workers.run(
        "tests.support.meta_models:stages", config_for(tied_model), 1, configs=configs
    )
    for config, stages in zip(configs, built, strict=True):
        shape = read_model_shape(config.model.path)
        tp = config.model.tensor_model_parallel_size
        ep = config.model.expert_model_parallel_size
        total = sum(s["split"] * tp + s["expert"] * ep + s["replicated"] for s in stages)
        assert total == shape.num_parameters, config.run_dir
        assert sum(s["sigma"] for s in stages) == shape.num_hidden_layers
        for stage, held in zip(stages, held_by_stage(config, shape), strict=True):
            assert stage["split"] == held.split
            assert stage["replicated"] + stage["sigma"] == held.replicated
            assert stage["expert"] == held.expert
