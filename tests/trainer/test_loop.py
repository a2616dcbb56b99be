"""The real loop and learner around a fake rollout engine, in one process."""

import json

import pytest

from alp_megatron.config.load import load_config
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.metrics.keys import envelope_keys, required_keys
from alp_megatron.metrics.recorder import read_metrics

STEPS = 4
SAMPLES = 4  # of a step
SMALL = [
    "model.tensor_model_parallel_size=1",
    "model.sequence_parallel=false",
    "rollout.prompts_per_step=2",
    "rollout.samples_per_prompt=2",
    "rollout.max_new_tokens=4",
    "rollout.gate_mean_abs_diff=1000",  # the engine has no model
    f"trainer.steps={STEPS}",
    "trainer.global_batch_size=2",
    "trainer.micro_batch_size=2",
    "evaluation.prompts=2",
    "evaluation.samples_per_prompt=1",
    "logging.tensorboard=false",
    "logging.wandb=false",
]


def loop(workers, run_dir, *overrides, resume=False):
    config = load_config("configs/quickstart.yaml", [f"run_dir={run_dir}", *SMALL, *overrides])
    result = workers.run("tests.support.loop_jobs:loop", config, 1, resume=resume)[0]
    return result, read_metrics(run_dir / "metrics.jsonl")


def reproducible(records):
    """The records without what a clock gives."""
    left_out = ("time/", "throughput/")
    return [{k: v for k, v in r.items() if not k.startswith(left_out)} for r in records]


@pytest.fixture(scope="module")
def whole(workers, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    return run_dir, *loop(workers, run_dir)


def test_every_step_updates_syncs_and_is_recorded(whole):
    run_dir, result, records = whole
    assert result["ended"] and result["versions"] == [0, 1, 2, 3, 4]
    assert result["counters"]["policy_version"] == STEPS
    assert [record["step"] for record in records] == list(range(STEPS))
    for record in records:
        assert set(required_keys(4)) <= record.keys()
        assert record["policy_version/lag_max"] == 0
    assert any(record["grad_norm"] > 0 for record in records)
    assert set(envelope_keys()) <= records[-1].keys() and not {*envelope_keys()} & records[0].keys()
    assert (run_dir / "checkpoints" / f"step_{STEPS:06d}").is_dir()


def test_rollouts_on_disk_are_trajectories_numbered_through_the_run(whole):
    run_dir, _, records = whole
    for step in range(STEPS):
        lines = (run_dir / "rollouts" / f"step_{step:06d}.jsonl").read_text().splitlines()
        trajectories = [Trajectory(**json.loads(line)) for line in lines]
        first = step * SAMPLES
        assert [t.sample_id for t in trajectories] == list(range(first, first + SAMPLES))
        assert [t.group_id for t in trajectories] == [first // 2 + i for i in (0, 0, 1, 1)]
        rewards = [t.reward for t in trajectories]
        assert sum(rewards) / SAMPLES == records[step]["reward/mean"]


def test_a_stop_is_answered_and_the_resumed_run_ends_as_if_never_stopped(workers, whole, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "stop").touch()
    result, records = loop(workers, run_dir)
    assert not result["ended"] and len(records) == 1
    assert (run_dir / "stopped").exists() and not (run_dir / "stop").exists()
    assert (run_dir / "checkpoints" / "step_000001").is_dir()
    result, records = loop(workers, run_dir, resume=True)
    assert result["ended"] and result["versions"] == [1, 2, 3, 4]
    assert reproducible(records) == reproducible(whole[2])


def test_a_lagging_engine_samples_with_older_weights(workers, tmp_path):
    """Also: a stop waits for the step after which the engine has the trainer's weights."""
    run_dir, lagging = tmp_path / "run", "rollout.sync_interval=2"
    result, records = loop(workers, run_dir, lagging)
    assert result["ended"] and result["versions"] == [0, 2, 4]
    assert [record["policy_version/lag_max"] for record in records] == [0, 1, 0, 1]
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "stop").touch()
    result, records = loop(workers, stopped, lagging)
    assert not result["ended"] and len(records) == 2 and result["versions"] == [0, 2]
