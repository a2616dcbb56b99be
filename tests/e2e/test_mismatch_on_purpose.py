"""Runs whose engine lags behind and holds noise in its weights, stopped and resumed."""

import pytest

from tests.support.runs import QUIET, Command, train_arguments, untimed

pytestmark = pytest.mark.slow

SETTINGS = [
    "rollout.sync_interval=2",
    "rollout.weight_noise=0.5",
    "evaluation.interval=2",
    "trainer.save_interval=2",
    "objective.method=bypass",
]


def finished(tmp_path, run_dir, *extra):
    command = Command(tmp_path, *train_arguments(run_dir, 4, *QUIET, *SETTINGS), *extra)
    try:
        assert command.wait(400) == 0, command.text()
    finally:
        command.end()
    return untimed(run_dir)


def test_lag_and_noise_show_and_a_resumed_run_is_the_same(tmp_path):
    unbroken = finished(tmp_path, tmp_path / "unbroken")
    assert [r["policy_version/lag_max"] for r in unbroken] == [0, 1, 0, 1]
    assert all(r["mismatch_before/k3"] > 1e-3 for r in unbroken)  # without noise it is near 1e-5

    run_dir = tmp_path / "broken"
    command = Command(tmp_path, *train_arguments(run_dir, 4, *QUIET, *SETTINGS))
    try:
        command.until((run_dir / "checkpoints" / "step_000002").exists)
    finally:
        command.end()
    assert finished(tmp_path, run_dir, "--resume") == unbroken
