"""One member of a sweep as a process of this machine."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from alp_megatron.config.run_dir import LAUNCH_DIR
from alp_megatron.runtime.lifetime import die_with_parent
from launch.manifest import Member
from launch.status import write_status

_END_SECONDS = 30  # that an interrupted member has before it is killed


class MemberProcess:
    """`alp-megatron train`, started or resumed; its output goes to launch/logs/local.log.

    It has a process group of its own, so that a Ctrl-C reaches it once, through `interrupt`.
    Linux kills it when the thread that made it ends, and its own processes die with it.
    """

    def __init__(self, member: Member, run_dir: Path):
        self.member = member
        self._run_dir = run_dir
        launch = run_dir / LAUNCH_DIR
        command = [sys.executable, "-m", "alp_megatron.cli", "train", str(launch / "config.yaml")]
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
        """Of a member that has ended."""
        return self._process.returncode

    def ended(self) -> bool:
        """Whether it has; the first time it has, its status is written."""
        code = self._process.poll()
        if code is None:
            return False
        good = "stopped" if (self._run_dir / "stopped").exists() else "finished"
        write_status(self._run_dir, "failed" if code else good, exit_code=code)
        return True

    def interrupt(self) -> None:
        """As Ctrl-C on a console does."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)

    def wait_or_kill(self) -> None:
        """Wait for the end of an interrupted member, but not for ever."""
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        write_status(self._run_dir, "cancelled", exit_code=code)
