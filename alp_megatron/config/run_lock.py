"""One command and one rank 0 at a time in a run directory.

A lock on two bytes of RUN_DIR/run.lock: the command's, and rank 0's, which outlives a killed
command by a moment. The kernel frees them when their process ends, however it ends.
"""

import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from alp_megatron.errors import UserError

LOCK = "run.lock"
_COMMAND, _FIRST_RANK = 0, 1  # the bytes
_WAIT_SECONDS = 15  # for what is left of a run that was killed a moment ago
# Closing any descriptor of the file would free this process's locks on it.
_files: dict[Path, int] = {}


def lock_run_dir(run_dir: Path) -> None:
    """Take both locks until this process ends or `leave_to_first_rank`.

    Raises:
        UserError: another run has them.
    """
    file = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    _files[run_dir] = file
    if not _lock(file, _COMMAND, length=2):
        holder = os.pread(file, 1000, 0).decode(errors="replace").strip()
        raise UserError(
            f"run_dir={run_dir} is in use by another run ({holder}): wait for its end, or choose "
            "another run_dir."
        )
    os.ftruncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def leave_to_first_rank(run_dir: Path) -> None:
    """Free rank 0's lock for the process that this command starts."""
    fcntl.lockf(_files[run_dir], fcntl.LOCK_UN, 1, _FIRST_RANK)


def lock_as_first_rank(run_dir: Path) -> None:
    """Take rank 0's lock, which the command has left, until this process ends."""
    _files[run_dir] = os.open(run_dir / LOCK, os.O_RDWR)
    taken = _lock(_files[run_dir], _FIRST_RANK, length=1)
    assert taken, f"{run_dir}: rank 0 has another process's lock in its way"


def _lock(file: int, first: int, length: int) -> bool:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, first)
            return True
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks
                return True
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
