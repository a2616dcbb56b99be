"""What the report of several runs says."""

from collections.abc import Mapping, Sequence

from alp_megatron.metrics.envelope import Level
from alp_megatron.report.envelope_figures import numerator_figures
from alp_megatron.report.overlay_figures import OVERLAYS, render_overlay, render_sigmas
from alp_megatron.report.page import Picture, figures, heading, note, paragraph, subheading, table
from alp_megatron.report.run_record import RunRecord, labels
from alp_megatron.report.sections import (
    BAND,
    LAST_AND_MEDIAN,
    NUMERATORS,
    config_differences,
    mismatch_tables,
    older,
    summary,
    unhealthy,
)

_LEVELS: dict[Level, str] = {"token": "tokens", "sequence_sum": "responses"}


def several_runs(runs: Sequence[RunRecord]) -> tuple[str, list[str], list[Picture]]:
    """Title, parts of the page, and the figures in it."""
    named = dict(zip(labels(runs), runs, strict=True))
    curves = _curves(named)
    parts = [
        _summary(named),
        heading("Configuration differences"),
        _differences(named),
        heading("Curves"),
        figures(curves),
    ]
    pictures = curves
    for level, what in _LEVELS.items():
        envelopes = _envelopes(named, level)
        if envelopes:
            parts += [heading(f"Ratio envelopes of {what}"), paragraph(BAND), figures(envelopes)]
            pictures = pictures + envelopes
    parts += [heading("Mismatch with the rollout policy"), paragraph(LAST_AND_MEDIAN)]
    for prefix, rows in mismatch_tables(named).items():
        parts += [subheading(NUMERATORS[prefix]), table(["metric", *named], rows)]
    parts += [heading("Warnings"), *_warnings(named)]
    return f"{len(runs)} runs", parts, pictures


def _summary(named: Mapping[str, RunRecord]) -> str:
    summaries = {name: summary(run) for name, run in named.items()}
    keys = dict.fromkeys(key for of in summaries.values() for key in of)
    rows = {key: [of.get(key, "-") for of in summaries.values()] for key in keys}
    return table(["", *named], rows)


def _warnings(named: Mapping[str, RunRecord]) -> list[str]:
    found = {name: [*unhealthy(run.records), *older(run)] for name, run in named.items()}
    parts = []
    for name, sentences in found.items():
        if sentences:
            parts += [subheading(name), *map(note, sentences)]
    quiet = [name for name, sentences in found.items() if not sentences]
    return [*parts, paragraph(f"None for {', '.join(quiet)}.")] if quiet else parts


def _differences(named: Mapping[str, RunRecord]) -> str:
    rows = config_differences(named)
    if not rows:
        return paragraph("None but run_dir.")
    return table(["key", *named], rows)


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
    """One figure a run that has the data, on equal axes."""
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
