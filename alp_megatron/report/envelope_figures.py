"""Envelopes of the log ratio as figures."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
from matplotlib.axes import Axes

from alp_megatron.metrics.envelope import (
    Bin,
    Level,
    by_staleness,
    envelope,
    envelope_edges,
    envelope_points,
)
from alp_megatron.metrics.tokens import Numerator, TokenRatios
from alp_megatron.report.canvas import BLUE, DASHES, GREY, ORANGE, png, series_style

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
    """Draws percentiles 2 and 98 as lines, the median as a thin one, all of one style.

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
    """Names both axes with units, or x alone, and draws a line where the policies are equal."""
    axes.axhline(0, color=GREY, lw=0.8, zorder=0)
    axes.set_xlabel(X_LABELS[level])
    if y:
        axes.set_ylabel(Y_LABELS[level])


def _runs(bins: Sequence[Bin]) -> np.ndarray:
    """Returns the columns (x, p02, p50, p98) as rows, with one of NaN where a bin is missing."""
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


GROUPS = 4  # of updates, by staleness
NUMERATORS: tuple[Numerator, ...] = ("clean", "perturbed")
_NUMERATOR_STYLE = {
    "clean": {"color": BLUE, "linestyle": DASHES[0]},
    "perturbed": {"color": ORANGE, "linestyle": DASHES[1]},
}


def numerators(ratios: TokenRatios) -> tuple[Numerator, ...]:
    """Names those that differ: a method without noise has one."""
    return NUMERATORS if ratios.has_noise else ("clean",)


def staleness_figures(ratios: TokenRatios, level: Level) -> dict[Numerator, bytes]:
    """Draws for each numerator a PNG with an envelope for each group of updates, on equal axes."""
    split = {
        numerator: by_staleness(envelope_points(ratios, numerator, level), GROUPS)
        for numerator in numerators(ratios)
    }
    edges = envelope_edges(chain.from_iterable(groups.values() for groups in split.values()))
    bins = {
        numerator: {name: envelope(points, edges) for name, points in groups.items()}
        for numerator, groups in split.items()
    }
    limits = _limits(b for groups in bins.values() for found in groups.values() for b in found)

    def draw(axes: Axes, groups: Mapping[str, list[Bin]]) -> None:
        for index, (name, found) in enumerate(groups.items()):
            draw_envelope(axes, found, label=name, fill=False, **series_style(index))
        _finish(axes, level, limits)

    return {
        numerator: png(lambda axes, groups=groups: draw(axes, groups))
        for numerator, groups in bins.items()
    }


def numerator_figures(runs: Mapping[str, TokenRatios], level: Level) -> dict[str, bytes]:
    """Draws for each run its clean and, with noise, perturbed envelope: PNGs on equal axes."""
    points = {
        name: {n: envelope_points(ratios, n, level) for n in numerators(ratios)}
        for name, ratios in runs.items()
    }
    if not points:
        return {}
    edges = envelope_edges(chain.from_iterable(of.values() for of in points.values()))
    bins = {
        name: {n: envelope(found, edges) for n, found in of.items()} for name, of in points.items()
    }
    limits = _limits(b for of in bins.values() for found in of.values() for b in found)

    def draw(axes: Axes, of: Mapping[Numerator, list[Bin]]) -> None:
        for numerator, found in of.items():
            draw_envelope(axes, found, label=f"{numerator} policy", **_NUMERATOR_STYLE[numerator])
        _finish(axes, level, limits)

    return {name: png(lambda axes, of=of: draw(axes, of)) for name, of in bins.items()}


def _finish(axes: Axes, level: Level, limits: dict) -> None:
    label_axes(axes, level)
    axes.set(**limits)
    if not limits:
        axes.text(0.5, 0.6, "too few for any bin", ha="center", transform=axes.transAxes)


def _limits(bins: Iterable[Bin]) -> dict[str, tuple[float, float]]:
    """Returns axes limits that hold all bins and log ratio 0, with a margin; {} without a bin."""
    bins = list(bins)
    if not bins:
        return {}
    left, right = min(b.start for b in bins), max(b.end for b in bins)
    low, high = min(0, *(b.p02 for b in bins)), max(0, *(b.p98 for b in bins))
    margin = 0.06 * (high - low) or 1e-6
    side = 0.02 * (right - left)
    return {"xlim": (left - side, right + side), "ylim": (low - margin, high + margin)}
