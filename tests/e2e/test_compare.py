"""A comparison of two small runs, killed with its runs and started again."""

import json
import os
import signal
import time

import pytest

from tests.support.runs import BASE_MODEL, QUICKSTART, REPO, Command, records, run, untimed

SETTINGS = {
    "model.path": str(BASE_MODEL),
    "model.tensor_model_parallel_size": 1,
    "model.sequence_parallel": False,
    "rollout.prompts_per_step": 4,
    "trainer.steps": 3,
    "trainer.global_batch_size": 16,
    "trainer.micro_batch_size": 16,
    "trainer.save_interval": 1,
    "evaluation.prompts": 8,
    "evaluation.interval": 1,
    "logging.wandb": False,
    "logging.tensorboard": False,
}


def comparison(directory):
    """The path of its file; it writes to `directory`/out."""
    path = directory / "comparison.yaml"
    tree = {
        "compare_dir": str(directory / "out"),
        "base": str(REPO / QUICKSTART),
        "set": SETTINGS,
        "methods": ["bypass", "alp"],
        "seeds": [1],
        "final_evaluations": 2,
    }
    path.write_text(json.dumps(tree))
    return path


def measures(root):
    tree = json.loads((root / "comparison.json").read_text())
    for row in tree["rows"]:
        del row["measures"]["minutes"]
    return tree["rows"]


@pytest.mark.slow
def test_killed_and_started_again(tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for directory in (broken, whole):
        directory.mkdir()
    words = ["compare", comparison(broken), "--parallel", "2"]
    first = Command(broken, *words)
    try:
        checkpoints = broken / "out"
        first.until(lambda: list(checkpoints.glob("0000/checkpoints/step_*")), 900)
        os.kill(first.process.pid, signal.SIGKILL)
        first.check_nothing_is_left()
    finally:
        first.end()
    begun = len(records(broken / "out" / "0000"))
    assert 1 <= begun <= 3 and not (broken / "out" / "comparison.json").exists()

    again = Command(broken, *words)
    try:
        assert again.wait(1200) == 0, again.text()
    finally:
        again.end()
    assert "resumed after step" in (broken / "out/0000/launch/logs/local.log").read_text()
    unbroken = Command(whole, "compare", comparison(whole))
    try:
        assert unbroken.wait(1200) == 0, unbroken.text()
    finally:
        unbroken.end()
    for index in range(2):
        ours, theirs = (untimed(root / "out" / f"{index:04d}") for root in (broken, whole))
        assert len(theirs) == 3
        assert ours == theirs
    assert measures(broken / "out") == measures(whole / "out")
    assert "| alp " in again.out
    figures = sorted(path.name for path in (broken / "out" / "figures").iterdir())
    assert figures == ["figure1.png", "figure2.png"]

    finished = run(broken, *words)
    assert finished.process.returncode == 0 and "2 runs, 2 finished\n" in finished.out


@pytest.mark.slow
def test_interrupted_from_the_console(tmp_path):
    """Everything ends, and one word is said."""
    command = Command(tmp_path, "compare", comparison(tmp_path), "--parallel", "2")
    try:
        command.until(lambda: command.member("engine"), 900)
        time.sleep(1)
        command.signal_group(signal.SIGINT)
        assert command.wait(60) == 130, command.text()
        assert command.err == "interrupted\n"
        command.check_nothing_is_left()
    finally:
        command.end()
    states = [
        json.loads((tmp_path / f"out/{index:04d}/launch/status.json").read_text())["state"]
        for index in range(2)
    ]
    assert states == ["cancelled", "cancelled"]
