"""kill -9 at any moment leaves no process, no shared memory and only whole files."""

import json
import random
import signal
import time

import pytest
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from alp_megatron.learner.checkpoints import damage
from tests.support.runs import QUIET, Command, last_checkpoint, records, train_arguments

VICTIMS = ["command", "rank 1", "engine", "rank 0"]


def check_files_are_whole(run_dir):
    """Whatever has its final name is complete."""
    steps = [record["step"] for record in records(run_dir)]
    assert steps == list(range(len(steps)))
    for path in run_dir.glob("rollouts/step_*.jsonl"):
        assert [json.loads(line)["sample_id"] for line in path.read_text().splitlines()]
    for checkpoint in run_dir.glob("checkpoints/step_*"):
        counters = json.loads((checkpoint / "counters.json").read_text())
        assert checkpoint.name == f"step_{counters['step']:06d}"
        assert json.loads((checkpoint / "hf" / "config.json").read_text())
        assert (checkpoint / "hf" / "tokenizer.json").exists()
        assert load_file(checkpoint / "hf" / "model.safetensors")
        assert damage(checkpoint) is None
        state = checkpoint / "state"
        assert (state / "metadata.json").exists()
        for part in FileSystemReader(state).read_metadata().storage_data.values():
            assert (state / part.relative_path).stat().st_size >= part.offset + part.length


def kill(command, who):
    command.until(lambda: command.member(who)).send_signal(signal.SIGKILL)


def check_aftermath(command, run_dir, who):
    command.check_nothing_is_left()
    check_files_are_whole(run_dir)
    if who == "command":
        return
    assert command.wait() == 1
    assert "Traceback" not in command.err and "SIGKILL" in command.err, command.text()
    assert command.err.count("error: ") == 1, command.text()
    assert ("--resume" in command.err) == bool(records(run_dir))


class LongRun:
    """A run that never ends by itself, started and killed again and again."""

    def __init__(self, directory, *overrides):
        self.directory, self.run_dir = directory, directory / "run"
        self._overrides = [*overrides, "trainer.save_interval=1"]
        self.command = None

    def start(self, *, steps=10**6):
        resume = ["--resume"] if self.run_dir.exists() else []
        arguments = train_arguments(self.run_dir, steps, *self._overrides, *resume)
        self._before = self.last_checkpoint()
        self.command = Command(self.directory, *arguments)
        return self.command

    def steps_made(self):
        return len(records(self.run_dir))

    def last_checkpoint(self):
        return last_checkpoint(self.run_dir)

    def until_steps_go(self):
        """A checkpoint was made since the start."""
        self.command.until(lambda: self.last_checkpoint() > self._before)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Three runs at the same time, one for each victim, killed in or between their steps."""
    runs = {who: LongRun(tmp_path_factory.mktemp("killed")) for who in VICTIMS[:3]}
    try:
        for run in runs.values():
            run.start()
        for who, run in runs.items():
            run.until_steps_go()
            time.sleep(random.uniform(0, 1))
            kill(run.command, who)
            check_aftermath(run.command, run.run_dir, who)
        yield runs
    finally:
        for run in runs.values():
            run.command.end()


@pytest.mark.slow
def test_killed_while_steps_go_and_resumed(killed):
    """One goes on to its end; another is interrupted from the console."""
    ending, interrupted = killed["rank 1"], killed["command"]
    last = ending.last_checkpoint() + 1
    ending.start(steps=last)
    interrupted.start()
    interrupted.until_steps_go()
    interrupted.command.signal_group(signal.SIGINT)
    assert interrupted.command.wait(30) == 130
    assert interrupted.command.err == "interrupted\n"
    interrupted.command.check_nothing_is_left()
    check_files_are_whole(interrupted.run_dir)

    command = ending.command
    assert command.wait() == 0, command.text()
    assert f"resumed after step {last - 1}" in command.out and command.err == ""
    assert ending.steps_made() == last == ending.last_checkpoint()
    check_files_are_whole(ending.run_dir)
    assert (ending.run_dir / "report.html").exists()
    assert not list(ending.run_dir.glob("checkpoints/.*"))
    command.check_nothing_is_left()


@pytest.mark.slow
def test_killed_during_start_up(tmp_path):
    """All at once, each in a run of its own; one then goes on from its beginning."""
    commands = {}
    for who in VICTIMS[:3]:
        directory = tmp_path / who.replace(" ", "-")
        directory.mkdir()
        run_dir = directory / "run"
        commands[who] = Command(directory, *train_arguments(run_dir, 10, *QUIET)), run_dir
    try:
        for who, (command, run_dir) in commands.items():
            command.until(lambda c=command, w=who: c.member("rank 1") and c.member(w))
            kill(command, who)
            check_aftermath(command, run_dir, who)
        again = Command(run_dir.parent, *train_arguments(run_dir, 1, *QUIET, "--resume"))
        commands["again"] = again, run_dir
        assert again.wait() == 0, again.text()
        assert [r["step"] for r in records(run_dir)] == [0]
    finally:
        for command, _ in commands.values():
            command.end()


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(12))
def test_killed_at_any_moment(tmp_path_factory, attempt):
    rng = random.Random(attempt)
    directory = tmp_path_factory.getbasetemp() / "any-moment"
    directory.mkdir(exist_ok=True)
    long_run = LongRun(directory)
    command = long_run.start()
    try:
        who = VICTIMS[attempt % len(VICTIMS)]
        command.until(lambda: command.member(who))
        time.sleep(rng.uniform(0, 45))
        kill(command, who)
        check_aftermath(command, long_run.run_dir, who)
    finally:
        command.end()
