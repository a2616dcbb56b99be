"""The real loop and learner around a fake rollout engine, in one process."""

import json
import re

import pytest
from safetensors.torch import load_file

from alp_megatron.config.load import load_config
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.learner.checkpoints import damage
from alp_megatron.metrics.keys import envelope_keys, required_keys
from alp_megatron.metrics.recorder import read_metrics
from alp_megatron.weights.verify import digest
from tests.support.runs import BASE_MODEL, QUICKSTART, REPO
from tests.support.small_disk import small_disk_at

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


JOBS = "tests.support.loop_jobs:"


def config_of(run_dir, *overrides):
    overrides = [f"run_dir={run_dir}", f"model.path={BASE_MODEL}", *SMALL, *overrides]
    return load_config(REPO / QUICKSTART, overrides)


def loop(workers, run_dir, *overrides, resume=False):
    config = config_of(run_dir, *overrides)
    result = workers.run(JOBS + "loop", config, 1, resume=resume)[0]
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


def last_weights(run_dir):
    """The fingerprints of the export of the last step."""
    export = load_file(run_dir / "checkpoints" / f"step_{STEPS:06d}" / "hf" / "model.safetensors")
    return {name: digest(tensor) for name, tensor in export.items()}


def test_the_engine_has_the_weights_of_the_last_step(whole):
    run_dir, result, _ = whole
    assert result["sent"] == last_weights(run_dir)
    base = load_file(BASE_MODEL / "model.safetensors")
    assert any(digest(base[name]) != sent for name, sent in result["sent"].items())


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


def test_another_seed_is_refused(workers, whole):
    config = config_of(whole[0], "seed=8")
    (said,) = workers.run(JOBS + "sentence_at_the_end", config, 1, resume=True)
    assert f"seed=8, but {whole[0]}" in said and "was made with seed=" in said


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


def test_the_last_weights_arrive_whatever_the_interval(workers, tmp_path):
    run_dir, interval = tmp_path / "run", 3
    assert STEPS % interval
    keys = ("rollout.sync_interval", "evaluation.interval", "trainer.save_interval")
    result, records = loop(workers, run_dir, *(f"{key}={interval}" for key in keys))
    assert result["ended"] and result["versions"] == [0, 3, 4]
    assert [record["policy_version/lag_max"] for record in records] == [0, 1, 2, 0]
    assert result["sent"] == last_weights(run_dir)


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        # The lowest bit of an fp32 parameter: the cast to the rollout's bf16 would hide it.
        ({"parameter": "decoder.layers.2.mlp.linear_fc2.weight"}, "layers.2.mlp.down_proj.weight"),
        (
            {"parameter": "decoder.layers.3.self_attention.linear_proj.weight", "bit": 31},
            "layers.3.self_attn.o_proj.weight",
        ),
        ({"tensor": "model.layers.1.self_attn.k_proj.bias"}, "layers.1.self_attn.k_proj.bias"),
    ],
    ids=["lowest bit", "sign", "on its way"],
)
def test_the_first_sync_names_the_tensor(workers, tmp_path, fault, named):
    config = config_of(tmp_path / "run")
    (said,) = workers.run(JOBS + "sentence_of_first_sync", config, 1, **fault)
    assert f"tensor model.{named} " in said
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_disk_that_is_full_after_some_steps(workers, whole, tmp_path):
    """The last checkpoint and all steps before are whole; what was begun is gone."""
    written = whole[0] / "checkpoints" / f"step_{STEPS:06d}"
    nbytes = sum(path.stat().st_size for path in written.rglob("*"))
    with small_disk_at(tmp_path / "disk", str(2 * nbytes)) as disk:
        run_dir = disk / "run"
        config = config_of(run_dir, "trainer.save_interval=1", "trainer.keep_checkpoints=3")
        (said,) = workers.run(JOBS + "sentence_at_the_end", config, 1)
        assert re.search(r"it needs [\d.]+ MB, [\d.]+ MB are free", said), said
        assert "free some space" in said and "--resume" in said
        steps = [record["step"] for record in read_metrics(run_dir / "metrics.jsonl")]
        assert steps == list(range(len(steps))) and len(steps) >= 2
        (last,) = run_dir.glob("checkpoints/step_*")
        assert damage(last) is None and not list(run_dir.rglob("*.partial"))
