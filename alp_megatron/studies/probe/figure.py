"""Figure 3: each method's ratio envelopes on the same rollouts, without and with the noise."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alp_megatron.files import write_atomic
from alp_megatron.metrics.envelope import (
    FEWEST,
    by_staleness,
    envelope,
    envelope_edges,
    envelope_points,
    envelope_width,
)
from alp_megatron.metrics.tokens import Numerator, TokenRatios
from alp_megatron.report.canvas import GREY, STYLE, png_file, series_style
from alp_megatron.report.envelope_figures import X_LABELS, draw_envelope
from alp_megatron.studies.probe.files import read_tokens

GROUPS = 3  # the first, the middle and the last third of the updates
NUMERATORS: tuple[Numerator, ...] = ("clean", "perturbed")
_TITLES = {"clean": "clean policy", "perturbed": "perturbed policy"}


def write_figure(out: Path, methods: list[str]) -> Path:
    """Draws figures/figure3.png of a probe's directory. Returns its path."""
    path = out / "figures" / "figure3.png"
    write_atomic(path, draw_figure({name: read_tokens(out, name) for name in methods}))
    return path


def draw_figure(tokens: dict[str, TokenRatios]) -> bytes:
    """Returns a PNG: a row a method, the clean and the perturbed numerator side by side on equal
    axes; below, how wide each method's envelope is at each update.
    """
    with rc_context(STYLE):
        rows = len(tokens) + 1
        figure = Figure(figsize=(9.2, 1.3 + 2.5 * rows), layout="constrained")
        grid = figure.subplots(rows, 2, squeeze=False)
        _envelopes(grid[:-1], tokens)
        _widths(grid[-1], tokens)
        _legends(figure, grid)
        return png_file(figure, dpi=150)


def _envelopes(grid: np.ndarray, tokens: dict[str, TokenRatios]) -> None:
    points = {
        (name, numerator): envelope_points(ratios, numerator, "token")
        for name, ratios in tokens.items()
        for numerator in NUMERATORS
    }
    groups = [by_staleness(p, GROUPS).values() for p in points.values()]
    edges = merged(envelope_edges(points.values()), [g.x for of in groups for g in of], FEWEST)
    for row, name in enumerate(tokens):
        for axes, numerator in zip(grid[row], NUMERATORS, strict=True):
            axes.sharex(grid[0, 0])
            axes.sharey(grid[0, 0])
            axes.tick_params(labelleft=numerator == "clean")
            axes.axhline(0, color=GREY, lw=0.8, zorder=0)
            if numerator == "perturbed" and not tokens[name].has_noise:
                axes.text(
                    0.5, 0.62, "no noise: as on the left", ha="center", transform=axes.transAxes,
                    color=GREY,
                )  # fmt: skip
                continue
            groups = by_staleness(points[name, numerator], GROUPS)
            for index, (label, group) in enumerate(groups.items()):
                bins = envelope(group, edges)
                draw_envelope(axes, bins, label=label, fill=False, **series_style(index))
        grid[row, 0].set_ylabel(f"{name}\nlog ratio (nats)")
    for axes, numerator in zip(grid[0], NUMERATORS, strict=True):
        axes.set_title(_TITLES[numerator])
    for axes in grid[-1]:
        axes.set_xlabel(X_LABELS["token"])
    for axes in grid[:-1].flat:
        axes.tick_params(labelbottom=False)


def merged(edges: np.ndarray, x_of_groups: list[np.ndarray], fewest: int) -> np.ndarray:
    """Joins neighbouring bins until each holds `fewest` points of every group.

    A good model finds most of its own tokens likely: of equal bins only those near 0 would be
    full. They are joined from there on; too few at the lower end join the last bin made.

    Args:
        edges: [bins + 1], ascending.
        x_of_groups: nats, each [n]; all within the edges.
    """
    counts = np.array([np.histogram(x, edges)[0] for x in x_of_groups if x.size])
    kept, first = [edges[-1]], len(edges) - 1
    for start in range(len(edges) - 2, -1, -1):
        if counts.size and (counts[:, start:first].sum(axis=1) >= fewest).all():
            kept.append(edges[start])
            first = start
    kept[-1 if len(kept) > 1 else len(kept) :] = [edges[0]]
    return np.array(kept[::-1])


def _widths(row: np.ndarray, tokens: dict[str, TokenRatios]) -> None:
    """Draws both panels on the first one's scale."""
    for axes, numerator in zip(row, NUMERATORS, strict=True):
        axes.sharey(row[0])
        axes.tick_params(labelleft=numerator == "clean")
        for index, (name, ratios) in enumerate(tokens.items()):
            axes.plot(*width_by_update(ratios, numerator), label=name, **series_style(index))
        axes.set_xlabel("update (index)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    row[0].set_ylim(bottom=0)
    row[0].set_ylabel("all tokens: P98 - P2\nof the log ratio (nats)")


def width_by_update(ratios: TokenRatios, numerator: Numerator) -> tuple[np.ndarray, np.ndarray]:
    """Returns (updates [u], percentile 98 less 2 of their tokens' log ratio, nats [u])."""
    train = ratios.train_logprobs(numerator)
    updates = np.unique(ratios.update)
    members = [ratios.update == update for update in updates]
    widths = [envelope_width(train[m], ratios.rollout_logprobs[m]) for m in members]
    return updates, np.array(widths)


def _legends(figure: Figure, grid: np.ndarray) -> None:
    """Puts the staleness above all panels, the methods below them."""
    for axes, place in (
        (grid[0, 0], "outside upper center"),
        (grid[-1, 0], "outside lower center"),
    ):
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc=place, ncols=min(4, max(1, len(labels))))
