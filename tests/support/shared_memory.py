"""What lies in /dev/shm, and whose it is not."""

import os
from contextlib import suppress
from pathlib import Path


def names() -> set[str]:
    return set(os.listdir("/dev/shm"))


def lost(before: set[str]) -> set[str]:
    """Made since, and no living process's: other programs of the machine have their own."""
    new = names() - before
    mapped = ""
    for maps in Path("/proc").glob("[0-9]*/maps") if new else ():
        with suppress(OSError):
            mapped += maps.read_text()
    return {name for name in new if f"/dev/shm/{name}" not in mapped}
