"""Starts the real command and watches what it leaves behind: processes, shared memory, files."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.support import shared_memory

REPO = Path(__file__).parents[2]
QUICKSTART = "configs/quickstart.yaml"
BASE_MODEL = REPO / "configs" / "models" / "arithmetic"

# Quick to run, with everything that the quickstart has: TP 2, SP, two updates a step.
SMALL = [
    "rollout.prompts_per_step=8",
    "rollout.samples_per_prompt=4",
    "trainer.global_batch_size=16",
    "trainer.micro_batch_size=16",
    "evaluation.prompts=16",
    "evaluation.samples_per_prompt=1",
]
QUIET = ["logging.wandb=false", "logging.tensorboard=false"]

_MARK = "ALP_TEST_RUN"  # in the environment of every process of a run


class Command:
    """`alp-megatron ARGUMENTS` in a session of its own, its output kept in files."""

    def __init__(self, directory: Path, *arguments: str, **environment: str):
        self.mark = uuid.uuid4().hex
        self._out, self._err = (directory / f"{self.mark}.{end}" for end in ("out", "err"))
        self.shared_memory = shared_memory.names()
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "alp_megatron", *map(str, arguments)],
                cwd=REPO,
                env=os.environ | {_MARK: self.mark} | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait(self, seconds: float = 180) -> int:
        """The exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"still running after {seconds} s:\n{self.text()}") from None

    def until(self, condition: Callable, seconds: float = 120):
        """The first true value of `condition()`; fails where the command ends before."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert self.process.poll() is None, f"ended too early:\n{self.text()}"
            assert time.monotonic() < deadline, f"waited in vain:\n{self.text()}"
            time.sleep(0.05)
        return value

    def alive(self) -> list[psutil.Process]:
        """The living processes of the run, wherever they moved in the process tree."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get(_MARK) == self.mark
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:  # it ended just now, or is another user's
                continue
        return found

    def member(self, who: str) -> psutil.Process | None:
        """The run's "command", its "engine" or a "rank N", once it is there."""
        for process in self.alive():
            try:
                words, environment = " ".join(process.cmdline()), process.environ()
            except psutil.Error:
                continue
            if who == "command" and process.pid == self.process.pid:
                return process
            if who == "engine" and "rollout.vllm.process" in words:
                return process
            if f"rank {environment.get('RANK')}" == who and "alp_megatron.commands" in words:
                return process
        return None

    def signal_group(self, number: int) -> None:
        """As the terminal does: every process of the command's group gets the signal."""
        os.killpg(self.process.pid, number)

    def check_nothing_is_left(self, seconds: float = 30) -> None:
        """No process and no shared memory of the run after `seconds` at most."""
        self.check_no_process_is_left(seconds)
        deadline = time.monotonic() + seconds
        while (left := shared_memory.lost(self.shared_memory)) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not left

    def check_no_process_is_left(self, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, [process.cmdline() for process in left]

    def end(self) -> None:
        """Kill whatever still lives, also after a failed test."""
        for process in self.alive():
            process.send_signal(signal.SIGKILL)
        self.process.wait()

    def text(self) -> str:
        return f"--- stdout\n{self.out}\n--- stderr\n{self.err}"


def run(directory: Path, *arguments: str, seconds: float = 180, **environment: str) -> Command:
    """Run the command to its end."""
    command = Command(directory, *arguments, **environment)
    command.wait(seconds)
    return command


def train_arguments(run_dir: Path, steps: int, *overrides: str) -> list[str]:
    return ["train", QUICKSTART, f"run_dir={run_dir}", f"trainer.steps={steps}", *SMALL, *overrides]


def records(run_dir: Path) -> list[dict]:
    """Every line of metrics.jsonl: all of them must be whole."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


_TIMED = ("time/", "throughput/")  # what a clock says


def untimed(run_dir: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if not k.startswith(_TIMED)} for r in records(run_dir)]


def check_same_steps(run_dir: Path, other_dir: Path) -> None:
    """Two runs' records have the same metrics, and the same values but for what a clock says."""
    ours, theirs = records(run_dir), records(other_dir)
    assert [record.keys() for record in ours] == [record.keys() for record in theirs]
    assert untimed(run_dir) == untimed(other_dir)


def last_checkpoint(run_dir: Path) -> int:
    """The step of the newest one, 0 if there is none."""
    return max((int(path.name[5:]) for path in run_dir.glob("checkpoints/step_*")), default=0)


def the_sentence(command: Command) -> str:
    """The command's one `error: ...` line, which is all that it says on stderr."""
    lines = command.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), command.text()
    return lines[0]
