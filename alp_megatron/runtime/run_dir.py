"""Takes possession of the run directory, or says in one sentence why it cannot."""

import errno
import fcntl
import json
import os
import shutil
import socket
import time
from pathlib import Path

from alp_megatron.config.load import resolved_yaml
from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.files import write_atomic
from alp_megatron.hf.shape import read_model_shape
from alp_megatron.runtime.machine import environment

# One command and one rank 0 at a time in a run directory.
#
# A lock on two bytes of RUN_DIR/run.lock: the command's, and rank 0's, which outlives a killed
# command by a moment. The kernel frees them when their process ends, however it ends.

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


# fp32 weight, two Adam moments and the fp32 main copy.
_CHECKPOINT_BYTES_PER_PARAMETER = 16
LAUNCH_DIR = "launch"


def prepare_run_dir(config: Config, resume: bool) -> Path:
    """Makes the run directory, locks it and writes config.yaml and environment.json into it.

    Nothing is made or changed before every check has passed.

    Raises:
        UserError: the directory is occupied or in use, cannot be resumed or written, or has too
            little space.
    """
    run_dir = check_run_dir(config, resume)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"run_dir={run_dir} cannot be made: {error.strerror}; choose another run_dir."
        ) from error
    lock_run_dir(run_dir)
    check_occupation(run_dir, resume)  # again: another run may have been faster
    # config.yaml first: with it, a run that is killed here can be resumed.
    write_atomic(run_dir / "config.yaml", resolved_yaml(config).encode())
    record = json.dumps(environment(config), indent=2) + "\n"
    write_atomic(run_dir / "environment.json", record.encode())
    return run_dir


def check_run_dir(config: Config, resume: bool) -> Path:
    """Returns the run directory, unchanged. Raises UserError where the run could not use it."""
    run_dir = Path(config.run_dir)
    check_occupation(run_dir, resume)
    _check_space(run_dir, config)
    return run_dir


def check_occupation(run_dir: Path, resume: bool) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run_dir={run_dir} is a file: choose another run_dir.")
    # What `alp-megatron launch` keeps there, and the lock, come before the run.
    before = (LAUNCH_DIR, LOCK)
    occupied = run_dir.is_dir() and any(path.name not in before for path in run_dir.iterdir())
    if occupied and not resume:
        raise UserError(
            f"run_dir={run_dir} is not empty: continue that run with --resume, or choose "
            "another run_dir."
        )
    # A run that ended before its first checkpoint is one too: it goes on from its beginning.
    if resume and not (run_dir / "config.yaml").is_file():
        raise UserError(
            f"run_dir={run_dir} holds no run to resume: start without --resume in an empty run_dir."
        )


def _check_space(run_dir: Path, config: Config) -> None:
    parent = next(p for p in (run_dir, *run_dir.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"run_dir={run_dir}: {parent} cannot be written; choose another run_dir.")
    parameters = read_model_shape(config.model.path).num_parameters
    # One more than are kept: the oldest is removed only when the newest is whole.
    checkpoints = config.trainer.keep_checkpoints + config.trainer.keep_best_checkpoint + 1
    needed = parameters * _CHECKPOINT_BYTES_PER_PARAMETER * checkpoints
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise UserError(
            f"run_dir={run_dir} has {free / 1e9:.2f} GB free where {checkpoints} checkpoints "
            f"need {needed / 1e9:.2f} GB: free some space, choose another run_dir or lower "
            "trainer.keep_checkpoints."
        )
