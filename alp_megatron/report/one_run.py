"""What report.html.j2 shows of one run."""

from typing import Any

from alp_megatron.config.load import flat, resolved_yaml
from alp_megatron.metrics.envelope import Level
from alp_megatron.metrics.tokens import TokenRatios
from alp_megatron.report.canvas import Picture, layer_sigmas
from alp_megatron.report.envelope_figures import numerator_figures, staleness_figures
from alp_megatron.report.figures import PLOTS, render
from alp_megatron.report.run_record import RunRecord
from alp_megatron.report.sections import (
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


def one_run(run: RunRecord) -> dict[str, Any]:
    """Returns the template's variables."""
    curves = [
        Picture(name, plot.title, plot.caption, render(plot, run.records))
        for name, plot in PLOTS.items()
        if name != "sigma" or any(layer_sigmas(run.records[-1]).values())
    ]
    groups = []
    if run.ratios:
        step, ratios = run.ratios
        pictures = _envelopes(ratios)
        what = f"step {step + 1}"
        groups.append({"what": what, "noiseless": not ratios.has_noise, "pictures": pictures})
    return {
        "single": True,
        "title": run.name,
        "summary": summary(run),
        "warnings": [*unhealthy(run.records), *older(run)],
        "curves": curves,
        "envelope_groups": groups,
        "mismatches": [_mismatch(run)],
        "environment": {key: shown(value) for key, value in flat(run.environment).items()},
        "configuration": resolved_yaml(run.config) if run.config else "",
    }


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


def _mismatch(run: RunRecord) -> dict[str, Any]:
    """Returns one table: a row a metric, a column a numerator."""
    tables = mismatch_tables({run.name: run})
    metrics = dict.fromkeys(metric for rows in tables.values() for metric in rows)
    rows = {
        metric: [rows[metric][0] if metric in rows else "-" for rows in tables.values()]
        for metric in metrics
    }
    return {"title": "", "columns": [NUMERATORS[prefix] for prefix in tables], "rows": rows}
