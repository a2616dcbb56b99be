"""Writes files that are whole or absent, and says in one sentence why a disk refuses them."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from alp_megatron.errors import UserError


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file as a whole: a reader, or a kill, sees the old one or the new one.

    Its directory is made where it is missing.

    Raises:
        UserError: the disk is full or the directory cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror}; free some space or choose another run_dir."
        ) from error


def check_free_space(partial: Path, nbytes: int) -> None:
    """Before anything large is written to `partial`, which exists. Raises UserError."""
    if shutil.disk_usage(partial).free < nbytes:
        raise _cannot_write(partial, nbytes, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


@contextmanager
def writing(partial: Path, nbytes: int | None = None) -> Iterator[None]:
    """Turns the errors of a disk into UserError.

    Args:
        partial: the checkpoint that is being written, in its run's `checkpoints/`.
        nbytes: its size, where that is known.
    """
    try:
        yield
    except (SafetensorError, OSError, RuntimeError) as error:
        # torch.save's zip writer has no error of its own.
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        raise _cannot_write(partial, nbytes, error) from error


def _cannot_write(partial: Path, nbytes: int | None, error: Exception) -> UserError:
    shutil.rmtree(partial, ignore_errors=True)
    place = partial.parent
    if place.exists() and not os.access(place, os.W_OK):
        return UserError(
            f"{place} is read-only, so a checkpoint cannot be written: make it writable and "
            "continue with --resume."
        )
    why = f"{error.strerror}; " if isinstance(error, OSError) and error.strerror else ""
    needed = f"it needs {nbytes / 1e6:.1f} MB, " if nbytes else ""
    free = shutil.disk_usage(place.parent).free / 1e6
    return UserError(
        f"{place}: a checkpoint cannot be written ({why}{needed}{free:.1f} MB are free without "
        "it): free some space and continue with --resume."
    )
