"""What all figures share: palette, size, step axis, legend, PNG file, place on a page."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT, LEGEND_ROW = 5.0, 3.4, 0.23  # inches; text stays readable on a phone's width
DPI = 200
WIDE = 30  # largest over smallest, for a logarithmic axis
LINE = 52  # characters of a legend's row
Records = Sequence[dict]

# Colours are Okabe and Ito's, which colour-blind readers can tell apart. Where several series share
# axes, each also has its own line style, for print and for grey.
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
SKY, AMBER, BLACK, PALE = "#56B4E9", "#E69F00", "#000000", "#BBBBBB"
COLORS = (BLUE, ORANGE, GREEN, PINK, BLACK, SKY, AMBER)
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
STYLE = {
    "font.size": 12,
    "axes.formatter.limits": (-4, 6),  # beyond, the power of ten stands once above the axis
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def series_style(index: int) -> dict:
    """Returns colour and line style of the series number `index`; 28 are different."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index % len(DASHES)],
    }


def png(draw: Callable[[Axes], None]) -> bytes:
    """Returns what `draw` puts on axes, the legend above in as many rows as its labels need."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", dpi=DPI)
        axes = figure.subplots()
        draw(axes)
        handles, names = axes.get_legend_handles_labels()
        if names:
            columns = max(1, min(4, len(names), LINE // (max(map(len, names)) + 5)))
            figure.set_figheight(HEIGHT + LEGEND_ROW * -(-len(names) // columns))
            figure.legend(
                handles, names, loc="outside upper center", ncols=columns, fontsize=10,
                handlelength=2.2, columnspacing=1.0, labelspacing=0.3,
            )  # fmt: skip
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.execute(figure)
        figure.set_layout_engine("none")  # savefig would lay it out twice again: half the time
        return png_file(figure, DPI)


def png_file(figure: Figure, dpi: int) -> bytes:
    """Returns the figure as a PNG file; to be called in the style that it was drawn in."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


@dataclass(frozen=True)
class Picture:
    """A figure of a page; `name` is its file's, without the ending."""

    name: str
    title: str
    caption: str
    png: bytes

    @property
    def uri(self) -> str:
        """Is the picture itself, as an address that needs no file."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def step_axis(axes: Axes, records: Records) -> None:
    """Names the axis, which holds all steps of the records; a single one gets some width."""
    axes.set_xlabel("training step")
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, records[0]["step"] + 0.5), max(right, records[-1]["step"] + 1.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def log_if_wide(axes: Axes) -> None:
    """Makes y logarithmic where the lines on it span much more than a decade.

    On a short stretch of a logarithmic axis there would be hardly a round number to read.
    """
    values = np.concatenate([np.asarray(drawn.get_ydata(), float) for drawn in axes.lines])
    positive = values[values > 0]
    if positive.size and positive.max() > WIDE * positive.min():
        axes.set_yscale("log", nonpositive="mask")


def line(axes: Axes, x: np.ndarray, y: np.ndarray, **style) -> None:
    """Draws a line; of few points also the points, so that a single one shows."""
    axes.plot(x, y, **({"marker": "."} if len(x) <= 5 else {}) | style)


def series(records: Records, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps counted from 1, values) of the records that hold the key."""
    points = [(r["step"] + 1, r[key]) for r in records if isinstance(r.get(key), int | float)]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, dtype=int), np.array(values, dtype=float)


def scores(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps made, scores) of evaluations, each once if `eval/step` tells them apart."""
    found = {
        r.get("eval/step", r["step"] + 1): r["eval/score"] for r in records if "eval/score" in r
    }
    steps = sorted(found)
    return np.array(steps, dtype=int), np.array([found[s] for s in steps], dtype=float)


def clipped_share(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, share of the tokens that a clip bound or the dual clip took)."""
    steps, low = series(records, "ratio/clip_low")
    _, high = series(records, "ratio/clip_high")
    _, dual = series(records, "ratio/dual_clip")
    return steps, low + high + dual


def layer_sigmas(record: dict) -> dict[int, float]:
    """Returns {layer: sigma} of a step."""
    prefix = "alp/sigma_layer_"
    found = {
        int(key.removeprefix(prefix)): v for key, v in record.items() if key.startswith(prefix)
    }
    return dict(sorted(found.items()))
