"""The curves of several runs on the same axes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from alp_megatron.report.canvas import (
    Records,
    clipped_share,
    layer_sigmas,
    line,
    log_if_wide,
    png,
    scores,
    series,
    series_style,
    step_axis,
)

LONGEST = 48  # characters of a label
Curve = Callable[[Records], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Overlay:
    """One figure: of each run these curves, in the run's style; the first one has its label."""

    title: str
    caption: str
    y_label: str
    curves: tuple[Curve, ...]
    logarithmic: bool = False


def _of(key: str) -> Curve:
    return partial(series, key=key)


OVERLAYS = {
    "score": Overlay(
        "Evaluation score", "Of the unperturbed policy.", "score (no unit)", (scores,)
    ),
    "reward": Overlay(
        "Training reward",
        "Mean over the step's samples.",
        "reward (no unit)",
        (_of("reward/mean"),),
    ),
    "k3_clean": Overlay(
        "Mismatch of the clean policy",
        "k3 of the trainer without noise to the rollout policy, before a step's updates.",
        "k3 (nats/token)",
        (_of("mismatch_before/k3"),),
        logarithmic=True,
    ),
    "k3_perturbed": Overlay(
        "Mismatch of the perturbed policy",
        "k3 of the ratio's numerator to the rollout policy, during the updates. Without noise "
        "it is the clean policy's.",
        "k3 (nats/token)",
        (_of("mismatch_during_perturbed/k3"),),
        logarithmic=True,
    ),
    "ratio": Overlay(
        "Tails of the importance ratio",
        "Percentiles 2 and 98 over the step's tokens, of the ratio that the method's loss has: "
        "to the rollout policy, or to the trainer's own old one.",
        "importance ratio (no unit)",
        (_of("ratio/p02"), _of("ratio/p98")),
        logarithmic=True,
    ),
    "clipped": Overlay(
        "Clipped tokens",
        "They give no gradient.",
        "share of the tokens (0 to 1)",
        (clipped_share,),
    ),
    "gradient": Overlay(
        "Gradient norm",
        "Before clipping to trainer.clip_grad, mean over the step's updates.",
        "gradient norm (no unit)",
        (_of("grad_norm"),),
        logarithmic=True,
    ),
    "entropy": Overlay(
        "Entropy",
        "Of the training policy, mean over the sampled tokens.",
        "entropy (nats/token)",
        (_of("entropy"),),
    ),
}


def render_overlay(overlay: Overlay, runs: Mapping[str, Records]) -> bytes | None:
    """Returns the figure as a PNG; None where no run has such values."""
    drawn = {name: [curve(records) for curve in overlay.curves] for name, records in runs.items()}
    if not any(len(steps) for curves in drawn.values() for steps, _ in curves):
        return None

    def draw(axes: Axes) -> None:
        for index, (name, curves) in enumerate(drawn.items()):
            for number, (steps, values) in enumerate(curves):
                label = {"label": shortened(name)} if number == 0 else {}
                line(axes, steps, values, **series_style(index), **label)
        axes.set_ylabel(overlay.y_label)
        if overlay.logarithmic:
            log_if_wide(axes)
        for records in runs.values():
            step_axis(axes, records)

    return png(draw)


def render_sigmas(runs: Mapping[str, Records]) -> bytes | None:
    """Draws sigma by layer after the last step, of runs with noise; None where none has any."""
    sigmas = {name: layer_sigmas(records[-1]) for name, records in runs.items()}
    if not any(max(values.values(), default=0) > 0 for values in sigmas.values()):
        return None

    def draw(axes: Axes) -> None:
        for index, (name, values) in enumerate(sigmas.items()):
            if max(values.values(), default=0) > 0:
                style = series_style(index) | {"marker": "o", "markersize": 4}
                axes.plot(list(values), list(values.values()), label=shortened(name), **style)
        axes.set_xlabel("layer")
        axes.set_ylabel("noise scale sigma (no unit)")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return png(draw)


def shortened(name: str) -> str:
    """Returns a label that fits above a figure: of a long name the middle is left out."""
    half = (LONGEST - 3) // 2
    return name if len(name) <= LONGEST else f"{name[:half]}...{name[-half:]}"
