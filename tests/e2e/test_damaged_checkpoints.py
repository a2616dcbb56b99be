"""Checkpoints that were damaged on the disk, disks that refuse, and two runs in one directory."""

import os
import shutil
import subprocess

import pytest

from tests.support.runs import QUIET, Command, records, run, the_sentence, train_arguments, untimed
from tests.support.small_disk import mount

pytestmark = pytest.mark.slow

STEPS = 3
EVERY_STEP = [
    "trainer.save_interval=1",
    "trainer.keep_checkpoints=3",
    "evaluation.interval=1",
    "logging.envelope_interval=1",
    *QUIET,
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("damaged")
    command = run(directory, *train_arguments(directory / "run", STEPS, *EVERY_STEP))
    assert command.process.returncode == 0, command.text()
    return directory / "run"


@pytest.fixture(scope="module")
def gone_on(finished):
    """The records of a sound copy of it that made one more step."""
    run_dir = shutil.copytree(finished, finished.parent / "sound", symlinks=True)
    command = resume(run_dir)
    assert command.process.returncode == 0 and command.err == "", command.text()
    return untimed(run_dir)


def resume(run_dir):
    arguments = train_arguments(run_dir, STEPS + 1, *EVERY_STEP, "--resume")
    return run(run_dir.parent, *arguments)


def truncated(checkpoint):
    path = checkpoint / "state" / "__1_0.distcp"
    os.truncate(path, path.stat().st_size - 1)
    return "state/__1_0.distcp has "


def with_a_flipped_bit(checkpoint):
    path = checkpoint / "state" / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    return "state/__0_0.distcp is not what was written"


def without_a_shard(checkpoint):
    (checkpoint / "state" / "__1_0.distcp").unlink()
    return "state/__1_0.distcp cannot be read (No such file or directory)"


@pytest.mark.parametrize("harm", [truncated, with_a_flipped_bit, without_a_shard])
def test_the_one_before_is_used(finished, gone_on, tmp_path, harm):
    run_dir = shutil.copytree(finished, tmp_path / "run", symlinks=True)
    fault = harm(run_dir / "checkpoints" / f"step_{STEPS:06d}")
    command = resume(run_dir)
    assert command.process.returncode == 0, command.text()
    lines = command.err.splitlines()
    assert len(lines) == 1 and f"step_{STEPS:06d} is damaged ({fault}" in lines[0], command.text()
    assert lines[0].endswith(f"goes on from step_{STEPS - 1:06d}.")
    assert f"resumed after step {STEPS - 1}" in command.out
    assert untimed(run_dir) == gone_on
    assert (run_dir / "checkpoints" / f"damaged_step_{STEPS:06d}").is_dir()


def test_none_is_whole(finished, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "run", symlinks=True)
    for checkpoint in run_dir.glob("checkpoints/step_*"):
        (checkpoint / "counters.json").write_text("{}")
    before = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    command = resume(run_dir)
    assert command.process.returncode == 2
    sentence = the_sentence(command)
    assert all(f"step_{step:06d}: counters.json has" in sentence for step in range(1, STEPS + 1))
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == before
    assert len(records(run_dir)) == STEPS


def test_a_directory_that_becomes_read_only(tmp_path):
    run_dir = tmp_path / "run"
    checkpoints = run_dir / "checkpoints"
    command = Command(tmp_path, *train_arguments(run_dir, 10**6, *EVERY_STEP))
    try:
        command.until(lambda: any(checkpoints.glob("step_*")))
        mount("--bind", checkpoints, checkpoints)
        mount("-o", "remount,bind,ro", checkpoints)
        assert command.wait(120) == 2, command.text()
        sentence = the_sentence(command)
        assert f"{checkpoints} is read-only" in sentence and "continue with --resume" in sentence
        command.check_nothing_is_left()
        last = max(checkpoints.glob("step_*"))
    finally:
        command.end()
        subprocess.run(["umount", "-l", checkpoints], check=False)
    again = run(
        tmp_path, *train_arguments(run_dir, int(last.name[5:]) + 1, *EVERY_STEP, "--resume")
    )
    assert again.process.returncode == 0 and again.err == "", again.text()
    assert f"resumed after step {int(last.name[5:])}" in again.out


def test_two_runs_in_one_directory(tmp_path):
    run_dir = tmp_path / "run"
    first = Command(tmp_path, *train_arguments(run_dir, 10**6, *EVERY_STEP))
    try:
        first.until(lambda: any(run_dir.glob("checkpoints/step_*")))
        before = (run_dir / "config.yaml").read_bytes()
        second = run(tmp_path, *train_arguments(run_dir, 7, *EVERY_STEP, "--resume"))
        assert second.process.returncode == 2
        assert "is in use by another run (process " in the_sentence(second)
        assert (run_dir / "config.yaml").read_bytes() == before
        made = len(records(run_dir))
        first.until(lambda: len(records(run_dir)) > made)
    finally:
        first.end()
