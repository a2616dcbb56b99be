"""Figure 1: evaluation score and training reward by step, a column a mismatch or a part of it."""

import io

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alp_megatron.comparison.bootstrap import mean_band
from alp_megatron.diagnostics.figures import scores, series
from alp_megatron.diagnostics.palette import STYLE, series_style

Curve = tuple[np.ndarray, np.ndarray]  # steps [k], values [k]
Runs = dict[str, dict[str, list[list[dict]]]]  # title: {method: [records of a run]}
_ROWS = {
    "evaluation score\n(mean reward)": scores,
    "training reward\n(mean)": lambda records: series(records, "reward/mean"),
}


def draw_scores(runs: Runs) -> bytes:
    """A PNG: the mean over the seeds of each method, with its 95 % bootstrap band."""
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
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=160)
    return png.getvalue()


def draw_mean(axes: Axes, curves: list[Curve], label: str, style: dict) -> None:
    """The mean of curves over the same steps. Steps that not all of them have are left out."""
    common = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in curves)))
    values = np.stack([v[np.isin(steps, common)] for steps, v in curves])
    band = mean_band(values)
    if band is not None:
        axes.fill_between(common, *band, color=style["color"], alpha=0.15, lw=0)
    axes.plot(common, values.mean(axis=0), label=label, **style)


def legend_entries(panels) -> tuple[list, list[str]]:
    """Each method once, whichever panels it is in."""
    entries: dict = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    return list(entries.values()), list(entries)
