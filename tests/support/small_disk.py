"""A file system that is soon full."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk_at(place: Path, size: str) -> Iterator[Path]:
    """A tmpfs of `size` (as mount writes it: 384k, 90m) at a directory that this makes."""
    place.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "none", place)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leaving: int) -> None:
    """Leaves so many bytes free."""
    free = shutil.disk_usage(disk).free
    (disk / "filling").write_bytes(bytes(max(0, free - leaving)))


def mount(*words: str | Path) -> None:
    """`mount WORDS`; skips the test where that is not allowed."""
    if os.geteuid() != 0 or subprocess.run(["mount", *words], capture_output=True).returncode != 0:
        pytest.skip("cannot mount a file system here")
