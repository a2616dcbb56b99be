"""The directory `checkpoints/` of a run: which there are, which is the best, which may go.

`step_000010` is a checkpoint after ten steps; what begins with a dot is not whole; `best` is a
link to the checkpoint with the highest evaluation score; `damaged_step_000010` was set aside.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alp_megatron.files import check_space, disk_errors, whole, words_of, write_atomic

CHECKPOINTS = "checkpoints"
COUNTERS = "counters.json"
BEST = "best"


def checkpoint_dirs(run_dir: Path) -> list[Path]:
    """Returns the finished checkpoints, oldest first."""
    return sorted((run_dir / CHECKPOINTS).glob("step_*"))


def check_free_space(partial: Path, nbytes: int) -> None:
    """Raises UserError if a checkpoint of so many bytes has no room; `partial` exists."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    check_space(partial, nbytes, lambda _: _give_up(partial, nbytes, full))


@contextmanager
def writing(partial: Path, nbytes: int | None = None) -> Iterator[None]:
    """Turns the errors of a disk into UserError.

    Args:
        partial: the checkpoint that is being written, in its run's `checkpoints/`.
        nbytes: its size, where that is known.
    """
    with disk_errors(lambda error: _give_up(partial, nbytes, error)):
        yield


def _give_up(partial: Path, nbytes: int | None, error: Exception) -> str:
    """Removes what there is of a checkpoint, and returns the sentence that says why."""
    shutil.rmtree(partial, ignore_errors=True)
    place = partial.parent
    if place.exists() and not os.access(place, os.W_OK):
        return (
            f"{place} is read-only, so a checkpoint cannot be written: make it writable and "
            "continue with --resume."
        )
    why = f"{words_of(error)}; " if words_of(error) else ""
    needed = f"it needs {nbytes / 1e6:.1f} MB, " if nbytes else ""
    free = shutil.disk_usage(place.parent).free / 1e6
    return (
        f"{place}: a checkpoint cannot be written ({why}{needed}{free:.1f} MB are free without "
        "it): free some space and continue with --resume."
    )


def publish(partial: Path, final: Path) -> None:
    """Gives a whole checkpoint its name. One of that name is hidden."""
    if final.exists():
        _hide(final)
    partial.rename(final)


def remove_leftovers(run_dir: Path) -> None:
    """Removes what was hidden, and what a killed save left behind."""
    for leftover in (run_dir / CHECKPOINTS).glob(".step_*"):
        shutil.rmtree(leftover)


def retire(run_dir: Path, keep: int, keep_best: bool) -> None:
    """Hides all but the newest `keep` checkpoints and, with `keep_best`, the best."""
    checkpoints = checkpoint_dirs(run_dir)
    kept = checkpoints[-keep:]
    best = max(checkpoints, key=_score_and_age) if keep_best else None
    if best and _score(best) is not None:
        kept.append(best)
        _link_best(best)
    for old in checkpoints:
        if old not in kept:
            _hide(old)


def set_aside(checkpoint: Path) -> Path:
    """Renames a damaged checkpoint so that it is neither resumed from nor counted."""
    place = checkpoint.with_name(f"damaged_{checkpoint.name}")
    if place.exists():
        shutil.rmtree(place)
    return checkpoint.rename(place)


def _score(checkpoint: Path) -> float | None:
    """Returns the evaluation of just these weights, if there was one."""
    counters = json.loads((checkpoint / COUNTERS).read_text())
    evaluated = counters.get("scored_step") == counters["step"]
    return counters["latest_score"] if evaluated else None


def _score_and_age(checkpoint: Path) -> tuple[float, str]:
    score = _score(checkpoint)
    return (float("-inf") if score is None else score), checkpoint.name


def _link_best(best: Path) -> None:
    link = best.with_name(BEST)
    with whole(link) as partial:
        partial.symlink_to(best.name)
        if link.is_dir() and not link.is_symlink():  # a copy of the run that has followed links
            shutil.rmtree(link)


def _hide(checkpoint: Path) -> None:
    """Hides a checkpoint: a removal takes long, and what a kill leaves must not look like a
    checkpoint.
    """
    checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.old"))


MANIFEST = "manifest.json"


def describe(path: Path) -> dict:
    """Returns {"bytes", "sha256"} of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def write_manifest(directory: Path, known: dict[str, dict]) -> None:
    """Describes every file below `directory`, the `known` ones as they are given.

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
    """Says what is wrong with a checkpoint, by the file's name; None if it is whole.

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
