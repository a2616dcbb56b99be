"""What report.html.j2 shows of several runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from alp_megatron.metrics.envelope import Level
from alp_megatron.report.canvas import Picture
from alp_megatron.report.envelope_figures import numerator_figures
from alp_megatron.report.overlay_figures import OVERLAYS, render_overlay, render_sigmas
from alp_megatron.report.run_record import RunRecord, labels
from alp_megatron.report.sections import (
    NUMERATORS,
    config_differences,
    mismatch_tables,
    older,
    summary,
    unhealthy,
)

_LEVELS: dict[Level, str] = {"token": "tokens", "sequence_sum": "responses"}


def several_runs(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Returns the template's variables."""
    named = dict(zip(labels(runs), runs, strict=True))
    groups = [
        {"what": what, "noiseless": False, "pictures": _envelopes(named, level)}
        for level, what in _LEVELS.items()
    ]
    warnings = {name: [*unhealthy(run.records), *older(run)] for name, run in named.items()}
    return {
        "single": False,
        "title": f"{len(runs)} runs",
        "names": list(named),
        "summary": _summaries(named),
        "differences": config_differences(named),
        "curves": _curves(named),
        "envelope_groups": [group for group in groups if group["pictures"]],
        "mismatches": [
            {"title": NUMERATORS[prefix], "columns": list(named), "rows": rows}
            for prefix, rows in mismatch_tables(named).items()
        ],
        "warnings": warnings,
        "quiet": [name for name, sentences in warnings.items() if not sentences],
    }


def _summaries(named: Mapping[str, RunRecord]) -> dict[str, list[str]]:
    """Returns a cell for each run below each of the summaries' names."""
    summaries = {name: summary(run) for name, run in named.items()}
    keys = dict.fromkeys(key for of in summaries.values() for key in of)
    return {key: [of.get(key, "-") for of in summaries.values()] for key in keys}


def _curves(named: Mapping[str, RunRecord]) -> list[Picture]:
    records = {name: run.records for name, run in named.items()}
    rendered = {name: render_overlay(overlay, records) for name, overlay in OVERLAYS.items()}
    pictures = [
        Picture(name, OVERLAYS[name].title, OVERLAYS[name].caption, png)
        for name, png in rendered.items()
        if png
    ]
    sigmas = render_sigmas(records)
    if sigmas:
        caption = "After the last step, of the runs with noise."
        pictures.append(Picture("sigma", "Noise scale by layer", caption, sigmas))
    return pictures


def _envelopes(named: Mapping[str, RunRecord], level: Level) -> list[Picture]:
    """Draws a figure for each run that has the data, on equal axes."""
    found = {name: run.ratios for name, run in named.items() if run.ratios}
    rendered = numerator_figures({name: ratios for name, (_, ratios) in found.items()}, level)
    numbers = {name: number for number, name in enumerate(named, start=1)}
    return [
        Picture(
            f"envelope_{level}_{numbers[name]}",
            name,
            f"Step {found[name][0] + 1}, all its updates.",
            png,
        )
        for name, png in rendered.items()
    ]
