"""Trainer against rollout engine at equal weights, each pair a row: numbers, table, Markdown."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from alp_megatron.diagnostics.envelope import Bin, envelope_bins, envelope_width
from alp_megatron.diagnostics.mismatch import mismatch_metrics

HEADERS = ("trainer", "rollout", "tokens", "k3", "mean abs diff", "max abs diff", "envelope width")


@dataclass(frozen=True)
class Agreement:
    """How far a trainer is from an engine on the same tokens; log-probabilities in nats."""

    tokens: int
    k3: float
    abs_diff_mean: float
    abs_diff_max: float
    envelope_width: float
    bins: list[Bin]


@dataclass(frozen=True)
class Row:
    """`result` is the agreement, or one sentence that says why the pair was not measured."""

    trainer: str
    rollout: str
    result: Agreement | str

    def cells(self) -> list[str]:
        """As text, under HEADERS; a failure stands by itself after the two names."""
        found = self.result
        if isinstance(found, str):
            return [self.trainer, self.rollout, found]
        numbers = (found.k3, found.abs_diff_mean, found.abs_diff_max, found.envelope_width)
        return [
            self.trainer,
            self.rollout,
            str(found.tokens),
            *(f"{number:.2e}" for number in numbers),
        ]


def compare(
    trainers: Mapping[str, np.ndarray], rollouts: Mapping[str, np.ndarray | str]
) -> list[Row]:
    """Every pair, trainers outermost.

    Args:
        trainers: name -> log-probabilities [t] of the tokens, nats.
        rollouts: name -> the same under an engine, or the sentence that says why there are none.
    """
    measured = [scores for scores in rollouts.values() if not isinstance(scores, str)]
    lowest = min((float(scores.min()) for scores in measured), default=0.0)
    return [
        Row(trainer, rollout, theirs if isinstance(theirs, str) else _agree(ours, theirs, lowest))
        for trainer, ours in trainers.items()
        for rollout, theirs in rollouts.items()
    ]


def _agree(ours: np.ndarray, theirs: np.ndarray, lowest: float) -> Agreement:
    everyone = np.ones(theirs.size)
    metrics = mismatch_metrics(ours, theirs, everyone, np.zeros(theirs.size, dtype=int))
    return Agreement(
        tokens=theirs.size,
        k3=metrics["mismatch/k3"],
        abs_diff_mean=metrics["mismatch/abs_diff_mean"],
        abs_diff_max=metrics["mismatch/abs_diff_max"],
        envelope_width=envelope_width(ours, theirs),
        bins=envelope_bins(ours, theirs, lowest),
    )


def text_table(rows: list[Row]) -> str:
    """For a terminal, columns aligned."""
    lines = [list(HEADERS), *(row.cells() for row in rows)]
    whole = [line for line in lines if len(line) == len(HEADERS)]
    widths = [max(len(line[i]) for line in whole) for i in range(len(HEADERS))]
    widths[1] = max(len(line[1]) for line in lines)
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), line[1].ljust(widths[1])]
            + [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=False)]
        )
        for line in lines
    )


def markdown_table(rows: list[Row]) -> str:
    lines = ["| " + " | ".join(HEADERS) + " |", "|---|---|" + "---:|" * (len(HEADERS) - 2)]
    for row in rows:
        cells = row.cells()
        cells += [""] * (len(HEADERS) - len(cells))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown_envelope(rows: list[Row], trainer: str) -> str:
    """The envelope's width by the rollout engine's log-probability, one column an engine."""
    columns = {
        row.rollout: {b.start: b for b in row.result.bins}
        for row in rows
        if row.trainer == trainer and isinstance(row.result, Agreement)
    }
    starts = {b.start: b.end for bins in columns.values() for b in bins.values()}
    lines = [
        "| rollout log p | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for start, end in sorted(starts.items()):
        cells = [
            f"{bins[start].width:.2e} ({bins[start].count})" if start in bins else "-"
            for bins in columns.values()
        ]
        lines.append(f"| {start:.2f} to {end:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
