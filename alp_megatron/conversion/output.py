"""An output directory that is whole or absent, and can be continued after a kill."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alp_megatron.errors import UserError

_JOB = ".conversion.json"
_SLACK = 8 * 2**20


@contextmanager
def whole_or_absent(out: Path, job: dict, nbytes: int) -> Iterator[Path]:
    """A directory to write in, which gets the name `out` when the block is left without error.

    What a killed attempt at the same `job` left is there again; a failed block leaves nothing.

    Args:
        job: what the output depends on.
        nbytes: of the output.

    Raises:
        UserError: `out` exists or cannot be made, or there is no space for it.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out} exists: choose another name or remove it.")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: its directory does not exist; make it first.")
    partial = out.with_name(f".{out.name}.partial")
    try:
        lock = _locked(partial)
        try:
            _resume_or_start(partial, job)
            _check_space(partial, out, nbytes)
            yield partial
            (partial / _JOB).unlink()
            partial.rename(out)
        finally:
            os.close(lock)
    except KeyboardInterrupt:
        raise  # the same command goes on from here
    except BaseException as error:
        if not isinstance(error, _Busy):
            shutil.rmtree(partial, ignore_errors=True)
        if _is_lack_of_space(error):
            raise UserError(f"--out {out}: no space is left; free some and start again.") from error
        if isinstance(error, OSError) and error.filename is not None:
            raise UserError(f"--out {out}: {error.filename}: {error.strerror}.") from error
        raise


class _Busy(UserError):
    """Another process writes the same output: what is there is not ours to remove."""


def _locked(partial: Path) -> int:
    """A lock on the directory that is released when the process ends, however it ends."""
    try:
        partial.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {partial.parent} cannot be written: {error.strerror}.") from error
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _Busy(f"{partial} is being written by another conversion: wait for it.") from None
    return descriptor


def _resume_or_start(partial: Path, job: dict) -> None:
    mark = partial / _JOB
    text = json.dumps(job, sort_keys=True)
    if mark.is_file() and mark.read_text() == text:
        print(f"going on with what an earlier attempt left in {partial}", flush=True)
        return
    for path in partial.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    mark.write_text(text)


def _check_space(partial: Path, out: Path, nbytes: int) -> None:
    written = sum(p.stat().st_size for p in partial.rglob("*") if p.is_file())
    needed, free = max(0, nbytes - written) + _SLACK, shutil.disk_usage(partial).free
    if free < needed:
        raise UserError(
            f"--out {out}: {free / 1e9:.2f} GB are free where the output takes "
            f"{needed / 1e9:.2f} GB: free some space or choose another place."
        )


def _is_lack_of_space(error: BaseException) -> bool:
    """torch's zip writer has no error of its own for it."""
    chain = [error, error.__cause__, error.__context__]
    return any(
        (isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT))
        or (isinstance(e, RuntimeError) and "inline_container" in str(e))
        for e in chain
    )


def fingerprint(files: list[Path]) -> list:
    """Tells whether files are those of an earlier attempt, without reading them."""
    return [[str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
