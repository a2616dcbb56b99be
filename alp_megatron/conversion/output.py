"""An output directory that is whole or absent, and can be continued after a kill."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alp_megatron.errors import UserError
from alp_megatron.files import FileLock, check_space, is_lack_of_space, partial_of

_JOB = ".conversion.json"
_SLACK = 8 * 2**20


@contextmanager
def whole_or_absent(out: Path, job: dict, nbytes: int) -> Iterator[Path]:
    """Yields a directory that gets the name `out` when the block is left without error.

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
    partial = partial_of(out)
    try:
        lock = _locked(partial)
        try:
            _resume_or_start(partial, lock, job)
            _check_space(partial, out, nbytes)
            yield partial
            (partial / _JOB).unlink()
            partial.rename(out)
        finally:
            lock.close()
    except KeyboardInterrupt:
        raise  # the same command goes on from here
    except BaseException as error:
        if not isinstance(error, _Busy):
            shutil.rmtree(partial, ignore_errors=True)
        if is_lack_of_space(error):
            raise UserError(f"--out {out}: no space is left; free some and start again.") from error
        if isinstance(error, OSError) and error.filename is not None:
            raise UserError(f"--out {out}: {error.filename}: {error.strerror}.") from error
        raise


class _Busy(UserError):
    """Another process writes the same output: what is there is not ours to remove."""


def _locked(partial: Path) -> FileLock:
    """Makes the directory and locks the file in it that says what job it belongs to."""
    try:
        partial.mkdir(exist_ok=True)
        lock = FileLock(partial / _JOB)
    except OSError as error:
        raise UserError(f"--out {partial.parent} cannot be written: {error.strerror}.") from error
    if not lock.take():
        lock.close()
        raise _Busy(f"{partial} is being written by another conversion: wait for it.")
    return lock


def _resume_or_start(partial: Path, lock: FileLock, job: dict) -> None:
    text = json.dumps(job, sort_keys=True)
    if lock.read() == text:
        print(f"going on with what an earlier attempt left in {partial}", flush=True)
        return
    for path in partial.iterdir():
        if path.name != _JOB:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    lock.write(text)


def _check_space(partial: Path, out: Path, nbytes: int) -> None:
    written = sum(p.stat().st_size for p in partial.rglob("*") if p.is_file())
    needed = max(0, nbytes - written) + _SLACK
    check_space(
        partial,
        needed,
        lambda free: (
            f"--out {out}: {free / 1e9:.2f} GB are free where the output takes "
            f"{needed / 1e9:.2f} GB: free some space or choose another place."
        ),
    )


def fingerprint(files: list[Path]) -> list:
    """Tells whether files are those of an earlier attempt, without reading them."""
    return [[str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
