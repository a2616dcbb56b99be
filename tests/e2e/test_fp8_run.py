"""The real command with emulated FP8 layers and a quantised engine: killed, resumed, unbroken."""

import pytest
from safetensors.torch import load_file

from tests.support.runs import QUIET, Command, check_same_steps, records, train_arguments

# A history that is full before the kill, and a step that is made only after the resume.
FP8 = ["model.fp8.recipe=delayed", "model.fp8.amax_history_len=3", "rollout.quantization=int8"]
EVERY_STEP = ["trainer.save_interval=1", "evaluation.interval=1"]
OVERRIDES = [*QUIET, *FP8, *EVERY_STEP]
METRICS = {
    "fp8/k3",
    "fp8/abs_diff_mean",
    "alp/fp8_surviving_fraction",
    *(f"fp8/amax_{operand}" for operand in ("input", "weight", "gradient")),
    *(f"fp8/amax_growth_{operand}" for operand in ("input", "weight", "gradient")),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("fp8")


def _finished(directory, run_dir, *more) -> Command:
    command = Command(directory, *train_arguments(run_dir, 3, *OVERRIDES), *more)
    command.wait(seconds=500)
    return command


@pytest.fixture(scope="module")
def resumed(directory):
    """kill -9 of all processes once two steps are saved, then a third step."""
    run_dir = directory / "resumed"
    long = Command(directory, *train_arguments(run_dir, 10**6, *OVERRIDES))
    try:
        long.until((run_dir / "checkpoints" / "step_000002").exists, seconds=500)
    finally:
        long.end()
    return _finished(directory, run_dir, "--resume")


@pytest.fixture(scope="module")
def unbroken(directory):
    return _finished(directory, directory / "unbroken")


def test_a_killed_run_goes_on_as_if_unbroken(resumed, unbroken, directory):
    for command in (resumed, unbroken):
        assert command.process.returncode == 0 and command.err == "", command.text()
    assert "resumed after step 2" in resumed.out
    ours, theirs = records(directory / "resumed"), records(directory / "unbroken")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == [0, 1, 2]
    check_same_steps(directory / "resumed", directory / "unbroken")
    weights = [
        load_file(directory / name / "checkpoints" / "step_000003" / "hf" / "model.safetensors")
        for name in ("resumed", "unbroken")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(tensor) for name, tensor in weights[1].items())


def test_the_fp8_metrics(unbroken, directory):
    for line in records(directory / "unbroken"):
        assert line.keys() >= METRICS
        assert 0 < line["fp8/k3"] < 0.01 and 0 < line["mismatch_before/k3"] < 0.01
        assert 0.02 < line["alp/fp8_surviving_fraction"] < 0.9
        assert all(line[f"fp8/amax_{operand}"] > 0 for operand in ("input", "weight", "gradient"))
        assert 0.9 < line["fp8/amax_growth_weight"] < 1.1  # lr 1e-5: weights hardly move
