"""Figure 2: the ratio's envelope at the sequence level, at the end of each method's own runs."""

import io
from collections.abc import Mapping, Sequence
from math import floor, log10
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from alp_megatron.comparison.figure_scores import legend_entries
from alp_megatron.diagnostics.envelope_figure import X_LABELS, Y_LABELS, draw_envelope
from alp_megatron.diagnostics.envelope_points import (
    Level,
    Numerator,
    Points,
    envelope,
    envelope_edges,
    envelope_points,
)
from alp_megatron.diagnostics.palette import BLUE, GREY, ORANGE, STYLE
from alp_megatron.diagnostics.token_ratios import TokenRatios

Methods = Mapping[str, Sequence[TokenRatios]]
LEVELS: tuple[Level, ...] = ("sequence_sum", "sequence_mean")
_LOOKS: dict[Numerator, tuple[str, str]] = {"clean": (BLUE, "-"), "perturbed": (ORANGE, "--")}
_COLUMNS = 6
_WIDEST = 10.0  # times the narrowest panel's range: beyond, the axis is logarithmic outside of that


def last_ratios(run_dir: Path) -> TokenRatios | None:
    """Of the last step that has them; None where the run wrote none."""
    paths = sorted((run_dir / "envelopes").glob("step_*.npz"))
    return TokenRatios.load(paths[-1]) if paths else None


def draw_envelopes(methods: Methods) -> bytes:
    """A PNG: a panel a method, above for sums over a response, below for means over its tokens.

    A method whose numerator is perturbed shows the clean one, too.

    Args:
        methods: for each the ratios of its runs, which are pooled; at least one.
    """
    rows = -(-len(methods) // _COLUMNS)
    columns = -(-len(methods) // rows)
    with rc_context(STYLE):
        size = (max(6.4, 2.7 * columns), 2 * (2.6 * rows + 0.6) + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        for part, level in zip(figure.subfigures(len(LEVELS), 1), LEVELS, strict=True):
            _draw_level(part, level, methods, (rows, columns))
        handles, labels = legend_entries(figure.get_axes())
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=10)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=160)
    return png.getvalue()


def _draw_level(part: SubFigure, level: Level, methods: Methods, shape: tuple[int, int]) -> None:
    grid = part.subplots(*shape, sharex=True, sharey=True, squeeze=False)
    ranges = []
    for axes, (method, ratios) in zip(grid.flat, methods.items(), strict=False):
        ranges.append(_draw_panel(axes, level, ratios))
        runs = "1 run" if len(ratios) == 1 else f"{len(ratios)} runs"
        axes.set_title(f"{method} ({runs})", fontsize=10)
        axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(methods) :]:
        axes.set_visible(False)
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(4))
    part.supxlabel(X_LABELS[level], fontsize=11)
    part.supylabel(Y_LABELS[level] + _scale(grid[0, 0], ranges), fontsize=11)


def _draw_panel(axes: Axes, level: Level, ratios: Sequence[TokenRatios]) -> float:
    """Returns how far the envelope goes from 0, nats."""
    points = {name: _pooled(ratios, name, level) for name in _numerators(ratios)}
    edges = envelope_edges(points.values())
    farthest = 0.0
    for name, of_name in points.items():
        bins = envelope(of_name, edges)
        color, dashes = _LOOKS[name]
        label = f"{name} numerator (P2, P50, P98)"
        draw_envelope(axes, bins, color, label, dashes)
        farthest = max([farthest, *(max(abs(b.p02), abs(b.p98)) for b in bins)])
    axes.axhline(0, color=GREY, lw=0.8, zorder=0)
    return farthest


def _numerators(ratios: Sequence[TokenRatios]) -> list[Numerator]:
    """The perturbed one too, where it is another."""
    noisy = any(not np.array_equal(r.clean_logprobs, r.perturbed_logprobs) for r in ratios)
    return ["clean", "perturbed"] if noisy else ["clean"]


def _pooled(ratios: Sequence[TokenRatios], numerator: Numerator, level: Level) -> Points:
    every = [envelope_points(one, numerator, level) for one in ratios]
    joined = (np.concatenate([getattr(p, name) for p in every]) for name in ("x", "y", "update"))
    return Points(level, *joined)


def _scale(axes: Axes, ranges: list[float]) -> str:
    """A collapsed method must not flatten the others, which share the axis, to lines.

    Returns what the axis' name must say of it.
    """
    narrowest = min((r for r in ranges if r > 0), default=0.0)
    if not narrowest or max(ranges) <= _WIDEST * narrowest:
        return ""
    threshold = 10.0 ** floor(log10(narrowest))  # a power of ten, where the axis has a tick
    axes.set_yscale("symlog", linthresh=threshold)
    return f"\nlogarithmic beyond ±{threshold:g}"
