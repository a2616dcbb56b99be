"""What the report of one run says."""

from alp_megatron.config.load import flat, resolved_yaml
from alp_megatron.metrics.envelope import Level
from alp_megatron.metrics.tokens import TokenRatios
from alp_megatron.report.canvas import layer_sigmas
from alp_megatron.report.envelope_figures import numerator_figures, staleness_figures
from alp_megatron.report.figures import PLOTS, render
from alp_megatron.report.page import Picture, code, figures, heading, note, pairs, paragraph, table
from alp_megatron.report.run_record import RunRecord
from alp_megatron.report.sections import (
    BAND,
    LAST_AND_MEDIAN,
    NUMERATORS,
    mismatch_tables,
    older,
    shown,
    summary,
    unhealthy,
)

_LEVELS: dict[Level, str] = {
    "token": "Tokens",
    "sequence_sum": "Responses",
    "sequence_mean": "Responses, per token",
}
_STALENESS = (
    "By the update that trained on them: later ones are further from the weights that sampled."
)


def one_run(run: RunRecord) -> tuple[str, list[str], list[Picture]]:
    """Title, parts of the page, and the figures in it."""
    curves = [
        Picture(name, plot.title, plot.caption, render(plot, run.records))
        for name, plot in PLOTS.items()
        if name != "sigma" or any(layer_sigmas(run.records[-1]).values())
    ]
    parts = [
        pairs(summary(run)),
        *map(note, [*unhealthy(run.records), *older(run)]),
        heading("Curves"),
        figures(curves),
    ]
    envelopes = []
    if run.ratios:
        step, ratios = run.ratios
        envelopes = _envelopes(ratios)
        parts += [heading(f"Ratio envelopes of step {step + 1}"), paragraph(BAND)]
        if not ratios.has_noise:
            parts.append(paragraph("Clean and perturbed policy are one: this run has no noise."))
        parts.append(figures(envelopes))
    parts += [heading("Mismatch with the rollout policy"), paragraph(LAST_AND_MEDIAN)]
    parts += _mismatch(run)
    if run.environment:
        rows = {key: shown(value) for key, value in flat(run.environment).items()}
        parts += [heading("Environment"), pairs(rows)]
    if run.config:
        parts += [heading("Configuration"), code(resolved_yaml(run.config))]
    return run.name, parts, curves + envelopes


def _envelopes(ratios: TokenRatios) -> list[Picture]:
    pictures = []
    for level, title in _LEVELS.items():
        (png,) = numerator_figures({"": ratios}, level).values()
        caption = "All updates of the step together."
        pictures.append(Picture(f"envelope_{level}", title, caption, png))
    levels: tuple[Level, ...] = ("token", "sequence_sum")
    for level in levels:
        for numerator, png in staleness_figures(ratios, level).items():
            title = f"{_LEVELS[level]} by staleness, {numerator} policy"
            pictures.append(Picture(f"envelope_{level}_{numerator}", title, _STALENESS, png))
    return pictures


def _mismatch(run: RunRecord) -> list[str]:
    tables = mismatch_tables({run.name: run})
    names = dict.fromkeys(name for rows in tables.values() for name in rows)
    rows = {
        name: [rows[name][0] if name in rows else "-" for rows in tables.values()] for name in names
    }
    return [table(["metric", *(NUMERATORS[prefix] for prefix in tables)], rows)]
