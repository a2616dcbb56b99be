"""The plan's figures against what small runs on CPUs allocate and send."""

import json

import pytest

from alp_megatron.config.schema import RolloutConfig
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.estimate.memory import longest_row, received_rows, trainer_memory
from alp_megatron.estimate.traffic import update_traffic
from alp_megatron.hf.shape import read_model_shape
from tests.support.layouts import config_for
from tests.support.models import make_model
from tests.support.runs import REPO

SAMPLES, LENGTH = 16, 128

# name -> (processes, model settings, trainer settings); `mixture` runs the one with experts.
LAYOUTS = {
    "none": (1, {}, {}),
    "full": (1, {"recompute_granularity": "full"}, {}),
    "selective": (1, {"recompute_granularity": "selective"}, {}),
    "tp2": (2, {"tensor_model_parallel_size": 2}, {}),
    "tp2-sp": (2, {"tensor_model_parallel_size": 2, "sequence_parallel": True}, {}),
    "tp2-sp-full": (
        2,
        {
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
            "recompute_granularity": "full",
        },
        {},
    ),
    "pp2": (2, {"pipeline_model_parallel_size": 2}, {}),
    "pp2-vpp2": (
        2,
        {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
        {},
    ),
    "dp2": (2, {}, {"use_distributed_optimizer": False}),
    "dp2-distributed-optimizer": (2, {}, {}),
    "mixture-ep2": (2, {"expert_model_parallel_size": 2}, {}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    dense = make_model(
        tmp_path_factory.mktemp("dense"),
        hidden_size=128,
        intermediate_size=352,
        vocab_size=1024,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
    )
    mixture = make_model(
        tmp_path_factory.mktemp("mixture"),
        dict(
            family="qwen3_moe",
            hidden_size=128,
            intermediate_size=352,
            moe_intermediate_size=96,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            vocab_size=1024,
        ),
    )
    return {"dense": dense, "mixture": mixture}


def planned_config(models, layout):
    processes, model, trainer = LAYOUTS[layout]
    path = models["mixture" if layout.startswith("mixture") else "dense"]
    config = config_for(path, rollout=RolloutConfig(max_model_len=LENGTH))
    config.model = config.model.model_copy(update={"logprob_chunk_tokens": 64} | model)
    settings = {"micro_batch_size": 4, "global_batch_size": SAMPLES}
    config.trainer = config.trainer.model_copy(
        update={"use_distributed_optimizer": True} | settings | trainer
    )
    config.runtime.world_size = processes
    return config, read_model_shape(path)


def full_length_trajectories() -> list[Trajectory]:
    response = [2 + i % 900 for i in range(LENGTH - 1)]
    return [
        Trajectory(
            sample_id=index,
            group_id=0,
            prompt_ids=[3],
            response_ids=response,
            loss_mask=[1] * len(response),
            rollout_logprobs=[-6.0] * len(response),
            policy_version=0,
            advantage=(-1.0) ** index,
        )
        for index in range(SAMPLES)
    ]


def shown(name: str, rows: list[tuple], record_property) -> None:
    for row in rows:
        print(f"{name:<28}", *row)
        record_property(name, json.dumps(row))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_is_within_a_tenth_of_what_is_allocated(models, workers, layout, record_property):
    config, shape = planned_config(models, layout)
    measured = workers.run(
        "tests.support.plan_jobs:memory",
        config,
        config.runtime.world_size,
        trajectories=full_length_trajectories(),
    )
    planned = trainer_memory(config, shape, kernels="torch")
    per_stage = config.runtime.world_size // len(planned)
    for rank, (between, peak) in enumerate(measured):
        parts = planned[rank // per_stage]
        held = parts.weights + parts.gradients + parts.optimizer
        held += received_rows(config, shape, longest_row(config), rank // per_stage)
        total = parts.total - parts.sync
        row = (held, between, round(held / between, 3), total, peak, round(total / peak, 3))
        shown(layout, [row], record_property)
        assert held == pytest.approx(between, rel=0.1)
        assert total == pytest.approx(peak, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name, of in LAYOUTS.items() if of[0] > 1])
def test_volumes_are_those_on_the_wire(models, workers, layout, record_property):
    config, shape = planned_config(models, layout)
    counted = workers.run(
        "tests.support.plan_jobs:traffic",
        config,
        config.runtime.world_size,
        trajectories=full_length_trajectories(),
    )
    stages = config.model.pipeline_model_parallel_size
    for rank, nbytes in enumerate(counted):
        planned = update_traffic(config, shape, rank * stages // len(counted)).nbytes
        rows = [(*key, planned[key], nbytes.get(key, 0)) for key in planned.keys() | nbytes.keys()]
        shown(layout, sorted(rows), record_property)
    for key in planned.keys() | counted[0].keys():
        wanted = sum(
            update_traffic(config, shape, rank * stages // len(counted)).nbytes[key]
            for rank in range(len(counted))
        )
        got = sum(nbytes.get(key, 0) for nbytes in counted)
        assert wanted == pytest.approx(got, rel=0.02, abs=4096), key


def test_documented_checks_are_those_of_the_tests():
    """docs/plan.md shows a row for every layout that is measured."""
    text = (REPO / "docs/plan.md").read_text()
    assert all(f"`{layout}`" in text for layout in LAYOUTS)
