"""The quickstart, killed with SIGKILL at twenty moments, tells the story of an unbroken run."""

import random
import re
import signal
import time
from functools import partial

import pytest

from tests.support.runs import (
    QUICKSTART,
    QUIET,
    Command,
    check_same_steps,
    last_checkpoint,
    records,
    run,
)

KILLS = 20
VICTIMS = ["command", "rank 1", "engine", "rank 0"]
LAST_STEP = 40  # of the quickstart
MOST_STEPS = 3  # that a run makes before it is killed
SETTINGS = ["trainer.save_interval=1", *QUIET]  # a save a step: kills come all through the run


def start(directory, run_dir):
    resume = ["--resume"] if run_dir.exists() else []
    return Command(directory, "train", QUICKSTART, f"run_dir={run_dir}", *SETTINGS, *resume)


def kill(command, who, wait):
    """Once the victim is there, and `wait` is over; no process of the run must be left."""
    try:
        command.until(lambda: command.member(who))
        wait()
        command.until(lambda: command.member(who)).send_signal(signal.SIGKILL)
        command.check_no_process_is_left()
    finally:
        command.end()
    assert command.process.returncode != 0


def moment(rng, command, run_dir, in_a_save):
    """Wait for a random one: in start-up, some steps later, or in the next save; but no longer
    than the run has steps to do."""
    partials = set(partial_saves(run_dir))
    steps = rng.randint(0, MOST_STEPS)
    if in_a_save:
        command.until(lambda: set(partial_saves(run_dir)) - partials, 900)
        time.sleep(rng.uniform(0, 0.2))
    elif steps == 0:
        time.sleep(rng.uniform(0, 20))
    else:
        begun = command.until(lambda: resumed_at(command, run_dir), 300)[0]
        until = min(begun + steps, LAST_STEP - 1)
        command.until(lambda: len(records(run_dir)) >= until, 900)
        time.sleep(rng.uniform(0, 3))


def partial_saves(run_dir):
    """With their inodes: a killed save's directory is removed and made anew."""
    return [(p, p.stat().st_ino) for p in run_dir.glob("checkpoints/.step_*.partial") if p.exists()]


def resumed_at(command, run_dir):
    """(steps made before,) when the run has said so."""
    found = re.search(r"resumed after step (\d+)|base score", command.out)
    return found and (int(found[1] or 0),)


@pytest.mark.slow
def test_killed_twenty_times(tmp_path):
    rng = random.Random(20)
    run_dir = tmp_path / "killed"
    for attempt in range(KILLS):
        who = VICTIMS[attempt % len(VICTIMS)]
        # But for the last save: with that the run is over.
        in_a_save = attempt % 5 == 4 and last_checkpoint(run_dir) < LAST_STEP - 1
        command = start(tmp_path, run_dir)
        kill(command, who, partial(moment, rng, command, run_dir, in_a_save))
        where = "in a save" if in_a_save else "at any moment"
        made, saved = len(records(run_dir)), last_checkpoint(run_dir)
        print(f"{attempt}: {who} {where}, {made} steps made, {saved} saved", flush=True)
    command = start(tmp_path, run_dir)
    assert command.wait(900) == 0, command.text()
    assert command.err == ""

    arguments = ["train", QUICKSTART, f"run_dir={tmp_path}/unbroken", *SETTINGS]
    unbroken = run(tmp_path, *arguments, seconds=900)
    assert unbroken.process.returncode == 0, unbroken.text()
    ours, theirs = records(run_dir), records(tmp_path / "unbroken")
    assert [r["step"] for r in ours] == [r["step"] for r in theirs] == list(range(LAST_STEP))
    check_same_steps(run_dir, tmp_path / "unbroken")
    weights = f"checkpoints/step_{LAST_STEP:06d}/hf/model.safetensors"
    assert (run_dir / weights).read_bytes() == (tmp_path / "unbroken" / weights).read_bytes()
