"""Envelopes on axes: a band from percentile 2 to 98, and the median in it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from alp_megatron.diagnostics.envelope import Bin
from alp_megatron.diagnostics.envelope_points import Level
from alp_megatron.diagnostics.palette import GREY

X_LABELS: dict[Level, str] = {
    "token": "rollout log-probability of the token (nats)",
    "sequence_sum": "rollout log-probability of the response (nats)",
    "sequence_mean": "rollout log-probability per token (nats/token)",
}
Y_LABELS: dict[Level, str] = {
    "token": "log ratio of the token (nats)",
    "sequence_sum": "log ratio of the response (nats)",
    "sequence_mean": "log ratio per token (nats/token)",
}


def draw_envelope(
    axes: Axes, bins: Sequence[Bin], color: str, label: str, linestyle="-", fill: bool = True
) -> None:
    """Percentiles 2 and 98 as lines, the median as a thin one, all of one style.

    A line goes through the centres of neighbouring bins, and to the outer edges of the first and
    the last of them; bins that were left out leave a gap. Without any bin only the label is
    drawn, so that a legend still names the series.
    """
    x, low, middle, high = _runs(bins)
    if fill:
        axes.fill_between(x, low, high, color=color, alpha=0.12, lw=0)
    edge = {"color": color, "linestyle": linestyle, "lw": 1.6}
    axes.plot(x, low, label=label, **edge)
    axes.plot(x, high, **edge)
    axes.plot(x, middle, color=color, linestyle=linestyle, lw=0.7)


def label_axes(axes: Axes, level: Level, y: bool = True) -> None:
    """Names and units of both axes, or of x alone; a line where the policies are equal."""
    axes.axhline(0, color=GREY, lw=0.8, zorder=0)
    axes.set_xlabel(X_LABELS[level])
    if y:
        axes.set_ylabel(Y_LABELS[level])


def _runs(bins: Sequence[Bin]) -> np.ndarray:
    """Columns (x, p02, p50, p98) as rows, with one of NaN where a bin is missing."""
    rows: list[tuple[float, ...]] = []
    for index, b in enumerate(bins):
        values = (b.p02, b.p50, b.p98)
        before, after = bins[index - 1 : index], bins[index + 1 : index + 2]
        if not (before and _touch(before[0], b)):
            rows += [(np.nan,) * 4, (b.start, *values)]
        rows.append(((b.start + b.end) / 2, *values))
        if not (after and _touch(b, after[0])):
            rows.append((b.end, *values))
    return np.array(rows[1:], dtype=np.float64).reshape(-1, 4).T


def _touch(left: Bin, right: Bin) -> bool:
    return bool(np.isclose(left.end, right.start, rtol=0, atol=1e-9))
