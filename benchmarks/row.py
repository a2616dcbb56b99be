"""One line of the benchmarks' table."""

from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Row:
    """A measure beside its reference.

    Attributes:
        name: what is measured.
        value, reference: in `unit`.
        reference_name: what the reference is.
        ratio, ratio_low, ratio_high: value / reference, the median over the rounds and quartiles.
        at_most, at_least: the goal of the ratio; neither where it is for information.
        note: what must be known to read the figures, and what the difference is made of.
    """

    name: str
    unit: str
    value: float
    reference: float
    reference_name: str
    ratio: float
    ratio_low: float
    ratio_high: float
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def goal(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:.2f}"
        return f">= {self.at_least:.2f}" if self.at_least is not None else "-"

    @property
    def verdict(self) -> str:
        """A miss between the quartiles may be the machine's noise: that is said, not hidden."""
        goal = self.at_least if self.at_most is None else self.at_most
        if goal is None:
            return "-"
        if (self.ratio <= goal) if self.at_least is None else (self.ratio >= goal):
            return "met"
        return "MISSED, in the noise" if self.ratio_low < goal < self.ratio_high else "MISSED"


def compare(values: list[float], references: list[float]) -> dict[str, float]:
    """Medians of interleaved rounds; the ratio is taken within a round, where the machine was in
    the same mood, and its median over the rounds."""
    ratios = [v / r for v, r in zip(values, references, strict=True)]
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    return {
        "value": median(values),
        "reference": median(references),
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
    }


def table(rows: list[Row]) -> str:
    head = ("measure", "unit", "value", "reference", "ratio", "quartiles", "goal", "verdict")
    lines = [
        (
            row.name,
            row.unit,
            f"{row.value:.4g}",
            f"{row.reference:.4g}",
            f"{row.ratio:.3f}",
            f"{row.ratio_low:.3f} to {row.ratio_high:.3f}",
            row.goal,
            row.verdict,
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, ["-" * width for width in widths], *lines)
    ]
    notes = [f"{row.name}: against {row.reference_name}. {row.note}".rstrip() for row in rows]
    return "\n".join([*text, "", *notes])
