"""The whole loop with the real engines: what a run leaves behind, and how it goes on."""

import json
import math
import os
import shutil

import numpy as np
import pytest

from alp_megatron.config.load import load_config
from alp_megatron.metrics.keys import envelope_keys, required_keys
from alp_megatron.metrics.tokens import TokenRatios, mismatch_metrics
from tests.support.layouts import some_trajectories
from tests.support.runs import (
    BASE_MODEL,
    QUICKSTART,
    QUIET,
    REPO,
    SMALL,
    check_same_steps,
    records,
    run,
    train_arguments,
)

LAYERS, STEPS = 4, 2
SAMPLES = 8 * 4  # of one step, see SMALL
EVERY_STEP = [
    "trainer.save_interval=1",
    "evaluation.interval=1",
    "logging.envelope_interval=1",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def finished(directory):
    """A run with every sink on, and its own folder for temporary files."""
    scratch = directory / "scratch"
    scratch.mkdir()
    arguments = train_arguments(directory / "run", STEPS, *EVERY_STEP)
    command = run(directory, *arguments, TMPDIR=str(scratch))
    assert command.process.returncode == 0, command.text()
    return command


@pytest.fixture(scope="module")
def resumed(finished, directory):
    """A copy of it as a kill leaves it while the last checkpoint is written, gone on to the end."""
    run_dir = shutil.copytree(directory / "run", directory / "resumed", symlinks=True)
    checkpoints = run_dir / "checkpoints"
    last = checkpoints / f"step_{STEPS:06d}"
    last.rename(checkpoints / f".{last.name}.partial")
    (checkpoints / "best").unlink()
    (run_dir / "report.html").unlink()
    arguments = train_arguments(run_dir, STEPS, *EVERY_STEP, *QUIET)
    command = run(directory, *arguments, "--resume")
    assert command.process.returncode == 0, command.text()
    return command


def test_the_run_directory_holds_what_is_promised(finished, directory):
    run_dir = directory / "run"
    assert {path.name for path in run_dir.iterdir()} == {
        "config.yaml",
        "environment.json",
        "run.lock",
        "metrics.jsonl",
        "rollouts",
        "envelopes",
        "checkpoints",
        "figures",
        "report.html",
        "summary.json",
        "logs",
        "tensorboard",
        "wandb",
    }
    overrides = [f"run_dir={run_dir}", f"trainer.steps={STEPS}", *SMALL, *EVERY_STEP]
    assert load_config(run_dir / "config.yaml") == load_config(REPO / QUICKSTART, overrides)
    assert json.loads((run_dir / "environment.json").read_text())["layout"]["world_size"] == 2
    checkpoints = run_dir / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "best",
        "step_000001",
        "step_000002",
    ]
    scores = {f"step_{r['eval/step']:06d}": r["eval/score"] for r in records(run_dir)}
    assert scores[os.readlink(checkpoints / "best")] == max(scores.values())
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in run_dir.glob("figures/*"))
    assert len(list(run_dir.glob("figures/*.png"))) >= 4
    page = (run_dir / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4 and "</html>" in page
    assert list(run_dir.glob("tensorboard/events.*")) and list(run_dir.glob("wandb/offline-run-*"))


def test_every_metric_is_there_and_finite(finished, directory):
    lines = records(directory / "run")
    assert [line["step"] for line in lines] == [0, 1]
    for line in lines:
        assert {*required_keys(LAYERS), *envelope_keys()} <= line.keys()
        assert all(math.isfinite(v) for v in line.values() if not isinstance(v, str))
        assert line["tokens/padding_share"] < 0.05
        assert line["alp/effective_fraction"] > 0.5
        assert line["updates/skipped"] == 0 and line["grad_norm"] > 0
        assert line["policy_version/lag_max"] == 0


def test_the_envelope_s_tokens_give_the_record_s_metrics(finished, directory):
    for line in records(directory / "run"):
        path = directory / "run" / "envelopes" / f"step_{line['step']:06d}.npz"
        tokens = TokenRatios.load(path)
        assert len(tokens.update) == line["tokens/response"]
        assert set(tokens.update.tolist()) == {0, 1}
        assert set(tokens.sample_id // SAMPLES) == {line["step"]}
        for prefix in ("mismatch_during_clean", "mismatch_during_perturbed"):
            logprobs = getattr(tokens, prefix.replace("mismatch_during_", "") + "_logprobs")
            ours = mismatch_metrics(
                logprobs,
                tokens.rollout_logprobs,
                np.ones_like(tokens.update),
                tokens.sample_id,
                prefix,
            )
            for key, value in ours.items():  # rollouts are rounded to float32
                assert value == pytest.approx(line[key], rel=1e-5, abs=1e-9), key


def test_the_score_is_the_summary_and_the_console_s(finished, directory):
    summary = json.loads((directory / "run" / "summary.json").read_text())
    last = records(directory / "run")[-1]
    assert last["eval/score"] == summary["final_score"] and last["eval/step"] == 2
    shown = f"score {summary['base_score']:.3f} -> {summary['final_score']:.3f}"
    assert shown in finished.out
    assert finished.err == ""


def test_rollouts_are_whole_and_agree_with_the_record(finished, directory):
    for line in records(directory / "run"):
        path = directory / "run" / "rollouts" / f"step_{line['step']:06d}.jsonl"
        samples = [json.loads(text) for text in path.read_text().splitlines()]
        first = line["step"] * SAMPLES
        assert [s["sample_id"] for s in samples] == list(range(first, first + 16))
        for s in samples:
            assert len(s["response_ids"]) == len(s["rollout_logprobs"]) == len(s["loss_mask"]) > 0
            assert s["policy_version"] == line["step"] and s["reward"] in (0, 1)


def test_nothing_is_left_running_or_lying_about(finished, directory):
    finished.check_nothing_is_left(seconds=5)
    # torch makes an empty folder for a compiler that is not used.
    assert {
        p for p in os.listdir(directory / "scratch") if not p.startswith("torchinductor")
    } == set()


def test_a_resumed_run_equals_an_unbroken_one(resumed, directory):
    assert "resumed after step 1" in resumed.out
    ours, unbroken = directory / "resumed", directory / "run"
    assert len(records(ours)) == len(records(unbroken)) == STEPS
    check_same_steps(ours, unbroken)
    for name in ("checkpoints/step_000002/hf/model.safetensors", "rollouts/step_000001.jsonl"):
        assert (ours / name).read_bytes() == (unbroken / name).read_bytes()
    assert (ours / "report.html").exists() and not list(ours.glob("checkpoints/.*"))


def test_the_export_can_be_evaluated(finished, directory):
    last = directory / "run" / "checkpoints" / "step_000002" / "hf"
    assert {p.name for p in last.iterdir()} == {p.name for p in BASE_MODEL.iterdir()}
    command = run(directory, "eval", last, *SMALL, "rollout.max_new_tokens=32",
                  "rollout.max_model_len=64", "rollout.cpu_kv_cache_mib=64")  # fmt: skip
    assert command.process.returncode == 0, command.text()
    final = json.loads((directory / "run" / "summary.json").read_text())["final_score"]
    assert command.out == f"score {final:.4f} (16 samples at temperature 1)\n"
    command.check_nothing_is_left(seconds=5)


@pytest.mark.slow  # the default tests show it of each half: trainer/test_loop, rollout
def test_a_synced_engine_equals_a_fresh_one(workers, tmp_path):
    overrides = [*SMALL, "trainer.lr=1e-3", "trainer.lr_warmup_steps=0"]
    config = load_config(REPO / QUICKSTART, [*overrides, f"model.path={BASE_MODEL}"])
    trajectories = some_trajectories()
    sequences = [t.prompt_ids + t.response_ids for t in trajectories]
    base, once, running, fresh = workers.run(
        "tests.support.sync_jobs:running_and_fresh_scores",
        config,
        2,
        trajectories=trajectories,
        sequences=sequences,
        directory=str(tmp_path),
    )[0]
    assert base != once != running
    assert fresh == running
