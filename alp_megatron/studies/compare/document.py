"""What a comparison found: comparison.json, .csv and .md, and the figures, in its directory."""

import csv
import json
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path

from alp_megatron.errors import UserError
from alp_megatron.files import write_atomic
from alp_megatron.metrics.intervals import LEVEL, RESAMPLES, Interval
from alp_megatron.studies.compare.config import ComparisonConfig, definition
from alp_megatron.studies.compare.figures import write_figures
from alp_megatron.studies.compare.outcomes import (
    MEASURES,
    REFERENCE,
    Outcome,
    Row,
    read_outcome,
    rows,
)
from alp_megatron.studies.compare.trials import Trial

TITLES = {
    "final_score": "final score",
    "best_score": "best score",
    "mean_score": "mean score",
    "k3_before": "k3 before updates",
    "k3_clean": "k3 clean",
    "k3_perturbed": "k3 perturbed",
    "clipped_share": "clipped share",
    "effective_fraction": "effective fraction",
    "sigma": "sigma",
    "minutes": "minutes",
}


@dataclass(frozen=True)
class Results:
    """All that the documents are made of."""

    comparison: ComparisonConfig
    finished: list[tuple[Trial, Outcome]]
    unfinished: list[Trial]
    rows: list[Row]


def write_results(comparison: ComparisonConfig, trials: list[Trial]) -> str:
    """Writes the documents and the figures of what has finished. Returns the Markdown text.

    Raises:
        UserError: nothing has finished, or a file is damaged.
    """
    found = [(trial, read_outcome(trial, comparison)) for trial in trials]
    finished = [(trial, outcome) for trial, outcome in found if outcome]
    if not finished:
        raise UserError(
            f"compare_dir={comparison.compare_dir} holds no finished run of this comparison: run "
            "it without --table-only."
        )
    unfinished = [trial for trial, outcome in found if not outcome]
    results = Results(comparison, finished, unfinished, rows(finished))
    _write_documents(results)
    write_figures(Path(comparison.compare_dir) / "figures", [trial for trial, _ in finished])
    return markdown(results)


def _write_documents(results: Results) -> None:
    root = Path(results.comparison.compare_dir)
    write_atomic(root / "comparison.json", (json.dumps(_tree(results), indent=1) + "\n").encode())
    write_atomic(root / "comparison.csv", _csv(results.rows).encode())
    write_atomic(root / "comparison.md", markdown(results).encode())


def markdown(results: Results) -> str:
    """Returns the table of each mismatch, with what its numbers mean."""
    parts = ["# Comparison\n", _explanation(results.comparison)]
    for mismatch in dict.fromkeys(row.mismatch for row in results.rows):
        rows = [row for row in results.rows if row.mismatch == mismatch]
        parts.append(f"## {mismatch}\n\n{_grid([_head(rows), *map(_cells, rows)])}")
    collapsed = [f"- {t.member.name}: {o.collapse}" for t, o in results.finished if o.collapse]
    if collapsed:
        parts.append("## Collapsed runs\n\n" + "\n".join(collapsed) + "\n")
    if results.unfinished:
        parts.append(f"## Not finished, and in no number above\n\n{_unfinished(results)}")
    return "\n".join(parts)


def _unfinished(results: Results) -> str:
    seeds: dict[str, list[str]] = {}
    for trial in results.unfinished:
        seeds.setdefault(f"mismatch={trial.mismatch} method={trial.method}", []).append(
            str(trial.seed)
        )
    return "".join(f"- {name}: seed {', '.join(found)}\n" for name, found in seeds.items())


def _explanation(comparison: ComparisonConfig) -> str:
    return (
        f"Means over seeds [{LEVEL} % percentile bootstrap interval, {RESAMPLES:,} resamples of "
        "the seeds; none where there is one seed].\n"
        f"Final score: mean of the last {comparison.final_evaluations} evaluations. Mean score: "
        "area under the score curve / steps.\n"
        "k3 to the rollout engine in nats per token, median over steps; clipped share of tokens "
        "and effective fraction: mean over steps; sigma after the last step.\n"
        f"Differences are of final scores at the same seed. {definition(comparison.collapse)}\n"
    )


def _head(rows: list[Row]) -> list[str]:
    best = next((row.baseline for row in rows if row.baseline), None)
    to_best = f"less {best} (best baseline)" if best else "less best baseline"
    titles = [f"{title}" for title in TITLES.values()]
    return ["method", "seeds", *titles[:3], "collapses", to_best, f"less {REFERENCE}", *titles[3:]]


def _cells(row: Row) -> list[str]:
    measures = [_shown(row.measures[name], form) for name, form in MEASURES.items()]
    collapses = f"{len(row.collapsed)} of {len(row.seeds)}"
    differences = [_shown(row.to_baseline, "+.3f"), _shown(row.to_reference, "+.3f")]
    return [
        row.method,
        str(len(row.seeds)),
        *measures[:3],
        collapses,
        *differences,
        *measures[3:],
    ]


def _shown(interval: Interval | None, form: str) -> str:
    return "-" if interval is None else interval.shown(form)


def _grid(rows: list[list[str]]) -> str:
    """Returns a Markdown table whose columns also line up as plain text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _csv(rows: list[Row]) -> str:
    intervals = [*MEASURES, "to_baseline", "to_reference"]
    head = ["mismatch", "method", "seeds", "collapses", "baseline"]
    head += [name + end for name in intervals for end in ("", "_low", "_high")]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        cells = [row.mismatch, row.method, len(row.seeds), len(row.collapsed), row.baseline]
        found = row.measures | {"to_baseline": row.to_baseline, "to_reference": row.to_reference}
        for name in intervals:
            interval = found[name]
            cells += [interval.mean, interval.low, interval.high] if interval else [None] * 3
        writer.writerow(cells)
    return text.getvalue()


def _tree(results: Results) -> dict:
    """Returns what is JSON-ready, with every run's measures, so that another table can be made."""
    return {
        "comparison": results.comparison.model_dump(),
        "collapse": definition(results.comparison.collapse),
        "interval": {"level": LEVEL / 100, "method": "percentile", "resamples": RESAMPLES},
        "reference": REFERENCE,
        "rows": [asdict(row) for row in results.rows],
        "runs": [
            {"run": t.member.index, **t.member.values, **asdict(o)} for t, o in results.finished
        ],
        "unfinished": [{"run": t.member.index, **t.member.values} for t in results.unfinished],
    }
