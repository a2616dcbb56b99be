"""The envelope figures of a report: by staleness, and the clean against the perturbed policy."""

from collections.abc import Iterable, Mapping
from itertools import chain

from matplotlib.axes import Axes

from alp_megatron.diagnostics.canvas import png
from alp_megatron.diagnostics.envelope import Bin
from alp_megatron.diagnostics.envelope_figure import draw_envelope, label_axes
from alp_megatron.diagnostics.envelope_points import (
    Level,
    by_staleness,
    envelope,
    envelope_edges,
    envelope_points,
)
from alp_megatron.diagnostics.palette import BLUE, DASHES, ORANGE, series_style
from alp_megatron.diagnostics.token_ratios import Numerator, TokenRatios

GROUPS = 4  # of updates, by staleness
NUMERATORS: tuple[Numerator, ...] = ("clean", "perturbed")
_NUMERATOR_STYLE = {
    "clean": {"color": BLUE, "linestyle": DASHES[0]},
    "perturbed": {"color": ORANGE, "linestyle": DASHES[1]},
}


def numerators(ratios: TokenRatios) -> tuple[Numerator, ...]:
    """Those that differ: a method without noise has one."""
    return NUMERATORS if ratios.has_noise else ("clean",)


def staleness_figures(ratios: TokenRatios, level: Level) -> dict[Numerator, bytes]:
    """For each numerator a PNG with an envelope for each group of updates, on equal axes."""
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
    """For each run a PNG with its clean and, with noise, its perturbed envelope, on equal axes."""
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
    """Axes limits that hold all bins and log ratio 0, with a margin; none where there is none."""
    bins = list(bins)
    if not bins:
        return {}
    left, right = min(b.start for b in bins), max(b.end for b in bins)
    low, high = min(0, *(b.p02 for b in bins)), max(0, *(b.p98 for b in bins))
    margin = 0.06 * (high - low) or 1e-6
    side = 0.02 * (right - left)
    return {"xlim": (left - side, right + side), "ylim": (low - margin, high + margin)}
