"""Files and directories that are whole or absent, locks on them, and what a disk refuses."""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from alp_megatron.errors import UserError


def partial_of(path: Path) -> Path:
    """Returns the hidden name beside `path` that something has until it is whole."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields `partial_of(path)`, which replaces `path` when the block is left without error.

    The block makes a file, a directory or a link there; a failed block leaves nothing of it.
    """
    partial = partial_of(path)
    _remove(partial)  # what a killed process left
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        _remove(partial)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces a file as a whole: a reader, or a kill, sees the old one or the new one.

    Its directory is made where it is missing.

    Raises:
        UserError: the disk is full or the directory cannot be written.
    """
    with disk_errors(
        lambda error: (
            f"cannot write {path}: {words_of(error)}; free some space or choose another run_dir."
        )
    ):
        path.parent.mkdir(exist_ok=True)
        with whole(path) as partial:
            partial.write_bytes(content)


def check_space(place: Path, nbytes: int, sentence: Callable[[int], str]) -> None:
    """Raises UserError(sentence(bytes that are free)) if `place`, which exists, has too few."""
    free = shutil.disk_usage(place).free
    if free < nbytes:
        raise UserError(sentence(free))


@contextmanager
def disk_errors(sentence: Callable[[Exception], str]) -> Iterator[None]:
    """Turns what a disk answers to a writer into UserError(sentence(error))."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _of_zip_writer(error):
            raise
        raise UserError(sentence(error)) from error


def words_of(error: Exception) -> str:
    """Returns the system's words for an error, such as 'No space left on device', or ''."""
    return (isinstance(error, OSError) and error.strerror) or ""


def is_lack_of_space(error: BaseException) -> bool:
    """Returns whether a full disk or an exhausted quota is the error, or what led to it."""
    chain = [error, error.__cause__, error.__context__]
    return any(
        (isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT))
        or (isinstance(e, RuntimeError) and _of_zip_writer(e))
        for e in chain
    )


def _of_zip_writer(error: RuntimeError) -> bool:
    """Returns whether torch.save's zip writer raised it, which has no error of its own."""
    return "inline_container" in str(error)


class FileLock:
    """Locks bytes of a file, which is made where it is missing, for this process alone.

    The kernel frees them when the process ends, however it ends. Child processes do not have them.
    Closing any other descriptor of the file in this process would free them too: what the file
    holds is read and written through this object.
    """

    def __init__(self, path: Path):
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def take(self, first: int = 0, length: int = 0, seconds: float = 0) -> bool:
        """Locks `length` bytes (0: all) from `first` on; tries for so many seconds.

        Returns False if another process has them. A file system without locks has none to give:
        there the answer is True.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, first)
                return True
            except OSError as error:
                if error.errno in (errno.ENOLCK, errno.ENOTSUP):
                    return True
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)

    def free(self, first: int, length: int) -> None:
        """Gives some of the bytes back."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, length, first)

    def read(self) -> str:
        """Returns the file's text."""
        return os.pread(self._file, os.fstat(self._file).st_size, 0).decode(errors="replace")

    def write(self, text: str) -> None:
        """Replaces the file's text."""
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)

    def close(self) -> None:
        """Frees all locks on the file."""
        os.close(self._file)
