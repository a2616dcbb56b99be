"""How far the members of a sweep are: a line that is updated, or lines in a log file."""

import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path

from alp_megatron.config.run_dir import LAUNCH_DIR
from alp_megatron.config.yaml_io import read_mapping
from launch.manifest import Member
from launch.status import last_record

_TERMINAL_SECONDS, _LOG_SECONDS = 1.0, 60.0  # between two looks


class Progress:
    """Says on stdout what started, what ended and how long the rest may take.

    The estimate is the seconds that a step took so far, starts and evaluations included, times the
    steps that are left.
    """

    def __init__(self, root: Path, members: list[Member]):
        self._root, self._members = root, members
        self._total = {member.index: self._steps(member) for member in members}
        self._at_start = sum(self._made(member) for member in members)
        self._done, self._failed = 0, 0
        self._updating = sys.stdout.isatty()
        self._begun = self._shown = time.monotonic()

    def started(self, member: Member) -> None:
        self._say(f"{member.index:04d} {member.name} ...")

    def ended(self, member: Member, code: int) -> None:
        self._done += 1
        self._failed += code != 0
        self._say(f"{member.index:04d} {'finished' if code == 0 else f'failed ({code})'}")

    def show(self, running: list[Member]) -> None:
        """Called often; writes once a second on a terminal, once a minute elsewhere."""
        now = time.monotonic()
        pause = _TERMINAL_SECONDS if self._updating else _LOG_SECONDS
        if now - self._shown < pause or not running:
            return
        self._shown = now
        line = self._overall(now - self._begun) + "".join(f" | {self._one(m)}" for m in running)
        if self._updating:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width]:<{width}}", end="", flush=True)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Takes the updating line away."""
        self._say("", end="")

    def _overall(self, elapsed: float) -> str:
        made = sum(self._made(member) for member in self._members)
        left = sum(self._total.values()) - made
        text = f"{self._done} of {len(self._members)} done"
        text += f", {self._failed} failed" if self._failed else ""
        text += f", {_clock(elapsed)} elapsed"
        if made > self._at_start:
            text += f", about {_clock(elapsed * left / (made - self._at_start))} left"
        return text

    def _one(self, member: Member) -> str:
        record = last_record(member.run_dir(self._root))
        at = f"{record['step'] + 1 if record else 0}/{self._total[member.index]}"
        reward = f" reward {record['reward/mean']:.3f}" if record else ""
        return f"{member.index:04d} {member.name} step {at}{reward}"

    def _made(self, member: Member) -> int:
        record = last_record(member.run_dir(self._root))
        return record["step"] + 1 if record else 0

    def _steps(self, member: Member) -> int:
        return read_mapping(member.run_dir(self._root) / LAUNCH_DIR / "config.yaml")["trainer"][
            "steps"
        ]

    def _say(self, text: str, end: str = "\n") -> None:
        blank = "\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r"
        print((blank if self._updating else "") + text, end=end, flush=True)


def _clock(seconds: float) -> str:
    """'0:12:03'."""
    return str(timedelta(seconds=round(seconds)))
