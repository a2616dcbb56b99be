"""The figures of one run, from its metrics."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap

from alp_megatron.metrics.keys import PHASES
from alp_megatron.report.canvas import (
    AMBER,
    BLUE,
    DASHES,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    SKY,
    Records,
    clipped_share,
    layer_sigmas,
    line,
    log_if_wide,
    png,
    scores,
    series,
    step_axis,
)


def reward_and_score(axes: Axes, records: Records) -> None:
    line(axes, *series(records, "reward/mean"), color=BLUE, label="training reward, mean")
    score = {"color": ORANGE, "marker": "o", "ls": DASHES[1]}
    line(axes, *scores(records), **score, label="evaluation score, no noise")
    axes.set_ylabel("reward, score (no unit)")


def mismatch(axes: Axes, records: Records) -> None:
    for prefix, label, style in (
        ("mismatch_before", "clean, before the updates", {"color": BLUE}),
        ("mismatch_during_perturbed", "perturbed, during them", {"color": ORANGE, "ls": DASHES[1]}),
        ("mismatch_during_clean", "clean, during them", {"color": GREEN, "ls": "", "marker": "s"}),
    ):
        steps, values = series(records, f"{prefix}/k3")
        if len(steps):
            line(axes, steps, values, label=label, **style)
    log_if_wide(axes)
    axes.set_ylabel("k3 to the rollout policy (nats/token)")


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
    axes.axhline(1, color=GREY, lw=0.8)
    axes.set_ylabel("importance ratio (no unit)")


def ratio_extremes(axes: Axes, records: Records) -> None:
    line(axes, *series(records, "ratio/max"), color=ORANGE, label="largest")
    line(axes, *series(records, "ratio/min"), color=BLUE, ls=DASHES[1], label="smallest")
    axes.axhline(1, color=GREY, lw=0.8)
    log_if_wide(axes)
    axes.set_ylabel("importance ratio (no unit)")


def clipped(axes: Axes, records: Records) -> None:
    line(axes, *clipped_share(records), color=BLUE, label="clipped")
    steps, rejected = series(records, "correction/rejected_tokens")
    if len(steps):
        line(axes, steps, rejected, color=ORANGE, ls=DASHES[1], label="rejected by the correction")
    axes.set_ylabel("share of the tokens (0 to 1)")
    axes.set_ylim(bottom=0)


def gradient_norm(axes: Axes, records: Records) -> None:
    line(axes, *series(records, "grad_norm"), color=BLUE)
    axes.set_ylabel("gradient norm (no unit)")
    axes.set_ylim(bottom=0)


def entropy(axes: Axes, records: Records) -> None:
    line(axes, *series(records, "entropy"), color=BLUE)
    axes.set_ylabel("entropy (nats/token)")
    axes.set_ylim(bottom=0)


def sigma_by_layer(axes: Axes, records: Records) -> None:
    layers = list(layer_sigmas(records[-1]))
    # Without the palest end of the map, which is hard to see on white.
    colors = ListedColormap(colormaps["cividis"](np.linspace(0, 0.88, max(len(layers), 1))))
    few = len(layers) <= 8
    for index, layer in enumerate(layers):
        style = {"ls": DASHES[index % len(DASHES)], "label": f"layer {layer}"} if few else {}
        line(axes, *series(records, f"alp/sigma_layer_{layer}"), color=colors(index), **style)
    axes.set_ylabel("noise scale sigma (no unit)")
    axes.ticklabel_format(axis="y", useOffset=False)
    if not few:
        norm = BoundaryNorm(np.arange(len(layers) + 1) - 0.5, len(layers))
        ticks = range(0, len(layers), -(-len(layers) // 8))
        bar = axes.figure.colorbar(
            ScalarMappable(norm, colors), ax=axes, label="layer", ticks=ticks
        )
        bar.minorticks_off()


def phase_times(axes: Axes, records: Records) -> None:
    axes.set_ylabel("time per step (s)")
    timed = [r for r in records if all(f"time/{name}" in r for name in (*PHASES, "total"))]
    steps, total = series(timed, "time/total")
    if not timed:
        return
    edges = np.append(steps, steps[-1] + 1) - 0.5
    bottom = np.zeros(len(steps))
    for phase, color in zip(PHASES, (BLUE, AMBER, SKY, GREEN), strict=True):
        _, seconds = series(timed, f"time/{phase}")
        axes.stairs(bottom + seconds, edges, baseline=bottom, fill=True, color=color, label=phase)
        bottom += seconds
    axes.stairs(
        np.maximum(total, bottom), edges, baseline=bottom, fill=True, color=PALE, label="other"
    )
    axes.set_ylim(bottom=0)


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
    "extremes": Plot(
        "Extremes of the importance ratio",
        "The largest and the smallest of all tokens of a step.",
        ratio_extremes,
    ),
    "clipped": Plot(
        "Tokens without effect",
        "Clipped tokens give no gradient; rejected ones take no part in the loss.",
        clipped,
    ),
    "gradient": Plot(
        "Gradient norm",
        "Before clipping to trainer.clip_grad, mean over the step's updates.",
        gradient_norm,
    ),
    "entropy": Plot(
        "Entropy",
        "Of the training policy, mean over the sampled tokens. Near 0 it explores no more.",
        entropy,
    ),
    "sigma": Plot(
        "Noise scale by layer",
        "The learned scale of the noise on each layer's input.",
        sigma_by_layer,
    ),
    "time": Plot(
        "Where the time goes",
        "Seconds of each phase, stacked; other is what the phases leave out.",
        phase_times,
    ),
}


def render(plot: Plot, records: Records) -> bytes:
    """Returns the plot as a PNG."""

    def draw(axes: Axes) -> None:
        plot.draw(axes, records)
        step_axis(axes, records)

    return png(draw)
