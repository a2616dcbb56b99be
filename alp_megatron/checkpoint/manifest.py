"""The manifest of a checkpoint: size and SHA-256 of every file it is made of."""

import hashlib
import json
import os
from pathlib import Path

from alp_megatron.diagnostics.files import write_atomic

MANIFEST = "manifest.json"


def describe(path: Path) -> dict:
    """{"bytes", "sha256"} of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def write_manifest(directory: Path, known: dict[str, dict]) -> None:
    """Describe every file below `directory`, the `known` ones as they are given.

    Args:
        known: descriptions by relative path, of files that their writers have described.
    """
    files = {
        name: known.get(name) or describe(directory / name)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and (name := str(path.relative_to(directory))) != MANIFEST
    }
    content = json.dumps({"files": files}, indent=1) + "\n"
    write_atomic(directory / MANIFEST, content.encode())
    for entry in (directory / MANIFEST, directory):
        _to_disk(entry)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def damage(directory: Path, share: int = 0, shares: int = 1) -> str | None:
    """What is wrong with a checkpoint, by the file's name; None if it is whole.

    Reads every file of this share: each of the training's processes takes one.
    """
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    for name in sorted(expected)[share::shares]:
        nbytes, digest = expected[name]
        try:
            found = (directory / name).stat().st_size
            if found != nbytes:
                return f"{name} has {found} bytes where {nbytes} were written"
            if describe(directory / name)["sha256"] != digest:
                return f"{name} is not what was written (its checksum differs)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None
