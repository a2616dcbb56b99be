"""Takes possession of the run directory, or says in one sentence why it cannot."""

import json
import os
import socket
from pathlib import Path

from alp_megatron.config.load import resolved_yaml
from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.files import FileLock, check_space, partial_of, write_atomic
from alp_megatron.hf.shape import read_model_shape
from alp_megatron.runtime.machine import environment

# One command and one rank 0 at a time in a run directory.
#
# A lock on two bytes of RUN_DIR/run.lock: the command's, and rank 0's, which outlives a killed
# command by a moment. The kernel frees them when their process ends, however it ends.

LOCK = "run.lock"
_COMMAND, _FIRST_RANK = 0, 1  # the bytes
_WAIT_SECONDS = 15  # for what is left of a run that was killed a moment ago
_locks: dict[Path, FileLock] = {}


def lock_run_dir(run_dir: Path) -> None:
    """Takes both locks until this process ends or `leave_to_first_rank`.

    Raises:
        UserError: another run has them.
    """
    lock = _locks[run_dir] = FileLock(run_dir / LOCK)
    if not lock.take(_COMMAND, length=2, seconds=_WAIT_SECONDS):
        raise UserError(
            f"run_dir={run_dir} is in use by another run ({lock.read().strip()}): wait for its "
            "end, or choose another run_dir."
        )
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")


def leave_to_first_rank(run_dir: Path) -> None:
    """Frees rank 0's lock for the process that this command starts."""
    _locks[run_dir].free(_FIRST_RANK, length=1)


def lock_as_first_rank(run_dir: Path) -> None:
    """Takes rank 0's lock, which the command has left, until this process ends."""
    lock = _locks[run_dir] = FileLock(run_dir / LOCK)
    taken = lock.take(_FIRST_RANK, length=1, seconds=_WAIT_SECONDS)
    assert taken, f"{run_dir}: rank 0 has another process's lock in its way"


# fp32 weight, two Adam moments and the fp32 main copy.
_CHECKPOINT_BYTES_PER_PARAMETER = 16
LAUNCH_DIR = "launch"
CONFIG = "config.yaml"


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
    write_atomic(run_dir / CONFIG, resolved_yaml(config).encode())
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
    # What `alp-megatron launch` keeps there, and the lock, come before the run. A run that was
    # killed while it first wrote config.yaml leaves a part of it, and nothing else.
    before = {run_dir / LAUNCH_DIR, run_dir / LOCK, partial_of(run_dir / CONFIG)}
    occupied = run_dir.is_dir() and any(path not in before for path in run_dir.iterdir())
    if occupied and not resume:
        raise UserError(
            f"run_dir={run_dir} is not empty: continue that run with --resume, or choose "
            "another run_dir."
        )
    # A run that ended before its first checkpoint is one too: it goes on from its beginning.
    if resume and not (run_dir / CONFIG).is_file():
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
    check_space(
        parent,
        needed,
        lambda free: (
            f"run_dir={run_dir} has {free / 1e9:.2f} GB free where {checkpoints} "
            f"checkpoints need {needed / 1e9:.2f} GB: free some space, choose another run_dir or "
            "lower trainer.keep_checkpoints."
        ),
    )
