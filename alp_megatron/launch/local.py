"""The members of a sweep on this machine, one after the other or several at once."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from alp_megatron.config.layout import world_size
from alp_megatron.config.schema import Config
from alp_megatron.config.yaml_io import read_mapping
from alp_megatron.errors import RunError, UserError
from alp_megatron.files import FileLock
from alp_megatron.launch.members import Member
from alp_megatron.launch.status import last_record, write_status
from alp_megatron.runtime.launcher import die_with_parent
from alp_megatron.runtime.machine import nvidia_gpus
from alp_megatron.runtime.progress import ProgressLine
from alp_megatron.runtime.run_dir import LAUNCH_DIR


def cores_of(config: Config) -> int:
    """Returns how many cores a run keeps busy: its training processes' threads and vLLM's."""
    return world_size(config) * config.runtime.threads_per_rank + config.rollout.cpu_threads


def runs_at_once(configs: Iterable[Config]) -> int:
    """Returns as many as there are cores for the largest of them, at least one.

    With a GPU one: every run takes the first GPUs that it sees.
    """
    configs = list(configs)
    if nvidia_gpus() and any(config.runtime.device != "cpu" for config in configs):
        return 1
    return max(1, len(os.sched_getaffinity(0)) // max(map(cores_of, configs)))


_END_SECONDS = 30  # that an interrupted member has before it is killed


class MemberProcess:
    """Runs `alp-megatron train`, started or resumed; its output goes to launch/logs/local.log.

    It has a process group of its own, so that a Ctrl-C reaches it once, through `interrupt`.
    Linux kills it when the thread that made it ends, and its own processes die with it.
    """

    def __init__(self, member: Member, run_dir: Path):
        self.member = member
        self._run_dir = run_dir
        launch = run_dir / LAUNCH_DIR
        command = [sys.executable, "-m", "alp_megatron", "train", str(launch / "config.yaml")]
        if (run_dir / "config.yaml").is_file():
            command.append("--resume")
        for leftover in ("stop", "stopped"):
            (run_dir / leftover).unlink(missing_ok=True)
        write_status(run_dir, "running")
        parent = os.getpid()
        with open(launch / "logs" / "local.log", "a") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                preexec_fn=lambda: die_with_parent(parent),
            )

    @property
    def exit_code(self) -> int:
        """The exit code of a member that has ended."""
        return self._process.returncode

    def ended(self) -> bool:
        """Returns whether it has ended; the first time it has, its status is written."""
        code = self._process.poll()
        if code is None:
            return False
        good = "stopped" if (self._run_dir / "stopped").exists() else "finished"
        write_status(self._run_dir, "failed" if code else good, exit_code=code)
        return True

    def interrupt(self) -> None:
        """Interrupts it as Ctrl-C on a console does."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)

    def wait_or_kill(self) -> None:
        """Waits for the end of an interrupted member, but not for ever."""
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        write_status(self._run_dir, "cancelled", exit_code=code)


class MemberProgress:
    """Says on stdout what started, what ended and how long the rest may take.

    The estimate is the seconds that a step took so far, starts and evaluations included, times the
    steps that are left.
    """

    def __init__(self, root: Path, members: list[Member]):
        self._root, self._members = root, members
        self._total = {member.index: self._steps(member) for member in members}
        self._at_start = sum(self._made(member) for member in members)
        self._done, self._failed = 0, 0
        self._line = ProgressLine(on_terminal=1.0, in_file=60.0)
        self._begun = time.monotonic()

    def started(self, member: Member) -> None:
        self._line.say(f"{member.index:04d} {member.name} ...")

    def ended(self, member: Member, code: int) -> None:
        self._done += 1
        self._failed += code != 0
        self._line.say(f"{member.index:04d} {'finished' if code == 0 else f'failed ({code})'}")

    def show(self, running: list[Member]) -> None:
        """Is called often; writes once a second on a terminal, once a minute elsewhere."""
        if running and self._line.is_due():
            overall = self._overall(time.monotonic() - self._begun)
            self._line.show(overall + "".join(f" | {self._one(member)}" for member in running))

    def close(self) -> None:
        """Takes the updating line away."""
        self._line.say("", end="")

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


def _clock(seconds: float) -> str:
    """Returns '0:12:03'."""
    return str(timedelta(seconds=round(seconds)))


_POLL_SECONDS = 0.2


def run_members(root: Path, members: list[Member], parallel: int = 1) -> int:
    """Runs or resumes each, `parallel` at once; one that fails does not end the others.

    At Ctrl-C, and whenever else this function is left early, the running members end too.

    Raises:
        UserError: another process runs members of this directory.
        RunError: some failed; they are named.
    """
    with _locked(root):
        failed = _run(root, members, parallel)
    if failed:
        names = ", ".join(f"'{member.name}'" for member in failed)
        raise RunError(
            f"{len(failed)} of {len(members)} members failed: {names}; what each said is in "
            f"{root}/NNNN/{LAUNCH_DIR}/logs/local.log."
        )
    return 0


def _run(root: Path, members: list[Member], parallel: int) -> list[Member]:
    """Returns those that failed, in the order of their numbers."""
    waiting = deque(members)
    running: list[MemberProcess] = []
    failed: list[Member] = []
    progress = MemberProgress(root, members)
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                member = waiting.popleft()
                running.append(MemberProcess(member, member.run_dir(root)))
                progress.started(member)
            for process in [process for process in running if process.ended()]:
                running.remove(process)
                progress.ended(process.member, process.exit_code)
                if process.exit_code:
                    failed.append(process.member)
            progress.show([process.member for process in running])
            time.sleep(_POLL_SECONDS if running else 0)
    finally:
        for process in running:
            process.interrupt()
        for process in running:
            process.wait_or_kill()
        progress.close()
    return sorted(failed, key=lambda member: member.index)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    lock = FileLock(root / ".local.lock")
    try:
        if not lock.take():
            raise UserError(f"{root}: another process runs its members; wait for its end.")
        yield
    finally:
        lock.close()
