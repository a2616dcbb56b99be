"""The members of a sweep on this machine, one after the other or several at once."""

import fcntl
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alp_megatron.config.run_dir import LAUNCH_DIR
from alp_megatron.errors import RunError, UserError
from launch.manifest import Member
from launch.member_process import MemberProcess
from launch.progress import Progress

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
    """Those that failed, in the order of their numbers."""
    waiting = deque(members)
    running: list[MemberProcess] = []
    failed: list[Member] = []
    progress = Progress(root, members)
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
    with open(root / ".local.lock", "w") as lock:  # Linux frees it however this process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{root}: another process runs its members; wait for its end."
            ) from None
        yield
