"""A comparison's figures: scores by step, envelopes at the last step."""

from collections.abc import Callable, Mapping, Sequence
from math import floor, log10
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from alp_megatron.files import write_atomic
from alp_megatron.metrics.envelope import (
    Level,
    Numerator,
    Points,
    envelope,
    envelope_edges,
    envelope_points,
)
from alp_megatron.metrics.intervals import mean_band
from alp_megatron.metrics.tokens import TokenRatios
from alp_megatron.report.canvas import (
    BLUE,
    GREY,
    ORANGE,
    STYLE,
    png_file,
    scores,
    series,
    series_style,
)
from alp_megatron.report.envelope_figures import X_LABELS, Y_LABELS, draw_envelope
from alp_megatron.studies.compare.outcomes import read_records
from alp_megatron.studies.compare.trials import Trial

Curve = tuple[np.ndarray, np.ndarray]  # steps [k], values [k]
Runs = dict[str, dict[str, list[list[dict]]]]  # title: {method: [records of a run]}
Methods = Mapping[str, Sequence[TokenRatios]]
_ROWS = {
    "evaluation score\n(mean reward)": scores,
    "training reward\n(mean)": lambda records: series(records, "reward/mean"),
}
_MOST = 8  # methods in a panel of figure 1
LEVELS: tuple[Level, ...] = ("sequence_sum", "sequence_mean")
_LOOKS: dict[Numerator, tuple[str, str]] = {"clean": (BLUE, "-"), "perturbed": (ORANGE, "--")}
_COLUMNS = 6  # of panels in figure 2
_WIDEST = 10.0  # times the narrowest panel's range: beyond, the axis is logarithmic outside of that


def write_figures(directory: Path, finished: list[Trial]) -> None:
    """Draws figure1.png; and figure2.png where runs wrote envelopes, one for each mismatch.

    With several mismatches the second is figure2-MISMATCH.png.
    """
    noisy = {trial.method for trial in finished if trial.noisy}
    panels = split_panels(_grouped(finished, read_records), noisy)
    write_atomic(directory / "figure1.png", draw_scores(panels))
    envelopes = _grouped(finished, lambda trial: last_ratios(trial.run_dir))
    for mismatch, methods in envelopes.items():
        suffix = f"-{mismatch}" if len(envelopes) > 1 else ""
        write_atomic(directory / f"figure2{suffix}.png", draw_envelopes(methods))


def split_panels(runs: Runs, noisy: set[str]) -> Runs:
    """Returns a panel for each mismatch, or two where one would hold too many methods."""
    panels: Runs = {}
    for mismatch, methods in runs.items():
        if len(methods) <= _MOST or not noisy & methods.keys():
            panels[mismatch] = methods
            continue
        for title, wanted in (("without noise", False), ("with noise", True)):
            chosen = {name: found for name, found in methods.items() if (name in noisy) == wanted}
            if chosen:
                panels[f"{mismatch}, {title}"] = chosen
    return panels


def _grouped[T](
    finished: list[Trial], read: Callable[[Trial], T | None]
) -> dict[str, dict[str, list[T]]]:
    """Returns {mismatch: {method: one for each seed}}; what `read` does not find is left out."""
    grouped: dict[str, dict[str, list[T]]] = {}
    for trial in finished:
        found = read(trial)
        if found is not None:
            methods = grouped.setdefault(trial.mismatch, {})
            methods.setdefault(trial.method, []).append(found)
    return grouped


def draw_scores(runs: Runs) -> bytes:
    """Returns a PNG: the mean over the seeds of each method, with its 95 % bootstrap band."""
    names = list(dict.fromkeys(method for methods in runs.values() for method in methods))
    with rc_context(STYLE):
        height = 5.6 + 0.25 * -(-len(names) // 4)  # the legend has four columns
        figure = Figure(figsize=(max(8.5, 4.4 * len(runs)), height), layout="constrained")
        grid = figure.subplots(len(_ROWS), len(runs), sharex="col", sharey="row", squeeze=False)
        for column, (title, methods) in enumerate(runs.items()):
            for row, (label, curve_of) in enumerate(_ROWS.items()):
                axes = grid[row, column]
                for method, of_seeds in methods.items():
                    curves = [curve_of(records) for records in of_seeds]
                    draw_mean(axes, curves, method, series_style(names.index(method)))
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
                if column == 0:
                    axes.set_ylabel(label)
            grid[0, column].set_title(title)
            grid[-1, column].set_xlabel("training step")
        handles, labels = legend_entries(grid.flat)
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
        return png_file(figure, dpi=160)


def draw_mean(axes: Axes, curves: list[Curve], label: str, style: dict) -> None:
    """Draws the mean of curves over the steps that all of them have."""
    common = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in curves)))
    values = np.stack([v[np.isin(steps, common)] for steps, v in curves])
    band = mean_band(values)
    if band is not None:
        axes.fill_between(common, *band, color=style["color"], alpha=0.15, lw=0)
    axes.plot(common, values.mean(axis=0), label=label, **style)


def legend_entries(panels) -> tuple[list, list[str]]:
    """Returns the legend of each method once, whichever panels it is in."""
    entries: dict = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    return list(entries.values()), list(entries)


def last_ratios(run_dir: Path) -> TokenRatios | None:
    """Returns those of the last step that has them; None where the run wrote none."""
    paths = sorted((run_dir / "envelopes").glob("step_*.npz"))
    return TokenRatios.load(paths[-1]) if paths else None


def draw_envelopes(methods: Methods) -> bytes:
    """Returns a PNG: a panel a method, above of sums over a response, below of means per token.

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
        return png_file(figure, dpi=160)


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
    """Draws one method. Returns how far its envelope goes from 0, nats."""
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
    """Names the perturbed one too, where it is another."""
    noisy = any(not np.array_equal(r.clean_logprobs, r.perturbed_logprobs) for r in ratios)
    return ["clean", "perturbed"] if noisy else ["clean"]


def _pooled(ratios: Sequence[TokenRatios], numerator: Numerator, level: Level) -> Points:
    every = [envelope_points(one, numerator, level) for one in ratios]
    joined = (np.concatenate([getattr(p, name) for p in every]) for name in ("x", "y", "update"))
    return Points(level, *joined)


def _scale(axes: Axes, ranges: list[float]) -> str:
    """Keeps a collapsed method from flattening the others, which share the axis, to lines.

    Returns what the axis' name must say of it.
    """
    narrowest = min((r for r in ranges if r > 0), default=0.0)
    if not narrowest or max(ranges) <= _WIDEST * narrowest:
        return ""
    threshold = 10.0 ** floor(log10(narrowest))  # a power of ten, where the axis has a tick
    axes.set_yscale("symlog", linthresh=threshold)
    return f"\nlogarithmic beyond ±{threshold:g}"
