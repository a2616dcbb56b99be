"""The directory `checkpoints/` of a run: which there are, which is the best, which may go.

`step_000010` is a checkpoint after ten steps; what begins with a dot is not whole; `best` is a
link to the checkpoint with the highest evaluation score; `damaged_step_000010` was set aside.
"""

import json
import shutil
from pathlib import Path

CHECKPOINTS = "checkpoints"
COUNTERS = "counters.json"
BEST = "best"


def checkpoint_dirs(run_dir: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    return sorted((run_dir / CHECKPOINTS).glob("step_*"))


def publish(partial: Path, final: Path) -> None:
    """Give a whole checkpoint its name. One of that name is hidden."""
    if final.exists():
        _hide(final)
    partial.rename(final)


def remove_leftovers(run_dir: Path) -> None:
    """What was hidden, and what a killed save left behind."""
    for leftover in (run_dir / CHECKPOINTS).glob(".step_*"):
        shutil.rmtree(leftover)


def retire(run_dir: Path, keep: int, keep_best: bool) -> None:
    """Hide all but the newest `keep` checkpoints and, with `keep_best`, the best."""
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
    """Rename a damaged checkpoint so that it is neither resumed from nor counted."""
    place = checkpoint.with_name(f"damaged_{checkpoint.name}")
    if place.exists():
        shutil.rmtree(place)
    return checkpoint.rename(place)


def _score(checkpoint: Path) -> float | None:
    """The evaluation of just these weights, if there was one."""
    counters = json.loads((checkpoint / COUNTERS).read_text())
    evaluated = counters.get("scored_step") == counters["step"]
    return counters["latest_score"] if evaluated else None


def _score_and_age(checkpoint: Path) -> tuple[float, str]:
    score = _score(checkpoint)
    return (float("-inf") if score is None else score), checkpoint.name


def _link_best(best: Path) -> None:
    link = best.with_name(BEST)
    temporary = best.with_name(f".{BEST}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(best.name)
    if link.is_dir() and not link.is_symlink():  # a copy of the run that has followed links
        shutil.rmtree(link)
    temporary.rename(link)


def _hide(checkpoint: Path) -> None:
    """A removal takes long, and what a kill leaves of it must not look like a checkpoint."""
    checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.old"))
