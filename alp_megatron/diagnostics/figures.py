"""The figures of a run, from its metrics."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alp_megatron.diagnostics.keys import PHASES
from alp_megatron.diagnostics.palette import BLUE, GREEN, GREY, ORANGE, PALE, PINK, STYLE

Records = Sequence[dict]
ZERO_SHOWN = 1e-12  # where a zero is drawn on a logarithmic axis


def series(records: Records, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the records that hold the key."""
    points = [(r["step"], r[key]) for r in records if isinstance(r.get(key), int | float)]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return np.array(steps, dtype=int), np.array(values, dtype=float)


def scores(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """(steps, scores) of the evaluations, each once where `eval/step` tells them apart."""
    found = {r.get("eval/step", r["step"]): r["eval/score"] for r in records if "eval/score" in r}
    steps = sorted(found)
    return np.array(steps, dtype=int), np.array([found[s] for s in steps], dtype=float)


def line(axes: Axes, steps: np.ndarray, values: np.ndarray, **style) -> None:
    """A line; of few points also the points, so that a single one shows."""
    axes.plot(steps, values, **({"marker": "."} if len(steps) <= 5 else {}) | style)


def reward_and_score(axes: Axes, records: Records) -> None:
    line(axes, *series(records, "reward/mean"), color=BLUE, label="training reward, mean")
    line(axes, *scores(records), color=ORANGE, marker="o", label="evaluation score, no noise")
    axes.set_ylabel("reward, score")
    axes.legend(loc="best")


def mismatch(axes: Axes, records: Records) -> None:
    for prefix, color, label in (
        ("mismatch", BLUE, "clean trainer"),
        ("mismatch_perturbed", ORANGE, "perturbed trainer"),
    ):
        steps, values = series(records, f"{prefix}/k3")
        line(axes, steps, np.maximum(values, ZERO_SHOWN), color=color, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("k3 to the rollout policy (nats/token)")
    axes.legend(loc="best")


def ratio_tails(axes: Axes, records: Records) -> None:
    for low, high, alpha in (("p01", "p99", 0.2), ("p02", "p98", 0.35)):
        steps, bottom = series(records, f"ratio/{low}")
        _, top = series(records, f"ratio/{high}")
        axes.fill_between(
            steps,
            bottom,
            top,
            color=BLUE,
            alpha=alpha,
            lw=0,
            label=f"{low}-{high}",
        )
    line(axes, *series(records, "ratio/p50"), color=BLUE, label="median")
    line(axes, *series(records, "ratio/max"), color=ORANGE, lw=1, ls="--", label="largest")
    line(axes, *series(records, "ratio/min"), color=PINK, lw=1, ls="--", label="smallest")
    axes.axhline(1, color=GREY, lw=0.8)
    axes.set_yscale("log")
    axes.set_ylabel("importance ratio")
    legend_above(axes)


def sigma_by_layer(axes: Axes, records: Records) -> None:
    keys = {key for record in records for key in record}
    layers = sorted(int(m[1]) for key in keys if (m := re.fullmatch(r"alp/sigma_layer_(\d+)", key)))
    # Without the palest end of the map, which is hard to see on white.
    colors = ListedColormap(colormaps["cividis"](np.linspace(0, 0.88, max(len(layers), 1))))
    for index, layer in enumerate(layers):
        steps, sigma = series(records, f"alp/sigma_layer_{layer}")
        line(axes, steps, sigma, color=colors(index), label=f"layer {layer}")
    axes.set_ylabel("noise scale sigma (no unit)")
    axes.ticklabel_format(axis="y", useOffset=False)
    if len(layers) > 8:
        norm = BoundaryNorm(np.arange(len(layers) + 1) - 0.5, len(layers))
        ticks = range(0, len(layers), -(-len(layers) // 8))
        bar = axes.figure.colorbar(
            ScalarMappable(norm, colors), ax=axes, label="layer", ticks=ticks
        )
        bar.minorticks_off()
    elif layers:
        axes.legend(loc="best")


def phase_times(axes: Axes, records: Records) -> None:
    axes.set_ylabel("time per step (s)")
    timed = [r for r in records if all(f"time/{name}" in r for name in (*PHASES, "total"))]
    steps, total = series(timed, "time/total")
    if not timed:
        return
    edges = np.append(steps, steps[-1] + 1) - 0.5
    bottom = np.zeros(len(steps))
    for phase, color in zip(PHASES, (BLUE, PINK, ORANGE, GREEN), strict=True):
        _, seconds = series(timed, f"time/{phase}")
        axes.stairs(bottom + seconds, edges, baseline=bottom, fill=True, color=color, label=phase)
        bottom += seconds
    axes.stairs(
        np.maximum(total, bottom), edges, baseline=bottom, fill=True, color=PALE, label="other"
    )
    axes.set_ylim(bottom=0)
    legend_above(axes)


def legend_above(axes: Axes) -> None:
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncol=5,
        columnspacing=1,
        handlelength=1.2,
        fontsize=9.5,
    )


@dataclass(frozen=True)
class Plot:
    title: str
    caption: str
    draw: Callable[[Axes, Records], None]


PLOTS = {
    "reward": Plot(
        "Reward and score",
        "The mean reward of the training samples, and the score of the unperturbed policy on "
        "the evaluation prompts.",
        reward_and_score,
    ),
    "mismatch": Plot(
        "Mismatch with the rollout policy",
        "k3 estimates the divergence of the training policy from the policy that sampled, "
        "without and with the perturbation. Lower is closer.",
        mismatch,
    ),
    "ratio": Plot(
        "Tails of the importance ratio",
        "Percentiles of the tokens of each step. Wide tails mean clipped, wasted tokens.",
        ratio_tails,
    ),
    "sigma": Plot(
        "Noise scale by layer",
        "The learned scale of the noise on each layer's input.",
        sigma_by_layer,
    ),
    "time": Plot(
        "Where the time goes",
        "Seconds of each phase, stacked; other is what the phases leave out: evaluation, saving.",
        phase_times,
    ),
}


def render(plot: Plot, records: Records) -> bytes:
    """The plot as a PNG."""
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        plot.draw(axes, records)
        axes.set_xlabel("step")
        first, last = axes.get_xlim()
        axes.set_xlim(min(first, records[0]["step"] - 1), max(last, records[-1]["step"] + 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=160)
    return png.getvalue()
