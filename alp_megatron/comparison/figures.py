"""The figures of a comparison's finished runs."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from alp_megatron.comparison.figure_envelopes import draw_envelopes, last_ratios
from alp_megatron.comparison.figure_scores import Runs, draw_scores
from alp_megatron.comparison.outcomes import read_records
from alp_megatron.comparison.trials import Trial
from alp_megatron.diagnostics.files import write_atomic

T = TypeVar("T")
_MOST = 8  # methods in a panel


def write_figures(directory: Path, finished: list[Trial]) -> None:
    """figure1.png; and figure2.png where runs wrote envelopes, one for each mismatch.

    With several mismatches the second is figure2-MISMATCH.png.
    """
    noisy = {trial.method for trial in finished if trial.noisy}
    panels = split_panels(_grouped(finished, read_records), noisy)
    write_atomic(directory / "figure1.png", draw_scores(panels))
    envelopes = _grouped(finished, lambda trial: last_ratios(trial.run_dir))
    for mismatch, methods in envelopes.items():
        suffix = f"-{mismatch}" if len(envelopes) > 1 else ""
        write_atomic(directory / f"figure2{suffix}.png", draw_envelopes(methods))


def split_panels(runs: Runs, noisy: set[str]) -> Runs:
    """A panel for each mismatch, or two where one would hold too many methods to tell apart."""
    panels: Runs = {}
    for mismatch, methods in runs.items():
        if len(methods) <= _MOST or not noisy & methods.keys():
            panels[mismatch] = methods
            continue
        for title, wanted in (("without noise", False), ("with noise", True)):
            chosen = {name: found for name, found in methods.items() if (name in noisy) == wanted}
            if chosen:
                panels[f"{mismatch}, {title}"] = chosen
    return panels


def _grouped[T](
    finished: list[Trial], read: Callable[[Trial], T | None]
) -> dict[str, dict[str, list[T]]]:
    """{mismatch: {method: one for each seed}}; what `read` does not find is left out."""
    grouped: dict[str, dict[str, list[T]]] = {}
    for trial in finished:
        found = read(trial)
        if found is not None:
            methods = grouped.setdefault(trial.mismatch, {})
            methods.setdefault(trial.method, []).append(found)
    return grouped
