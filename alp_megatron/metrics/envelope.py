"""The envelope of the log ratio between two policies: how wide it is, and where.

Points (x, y) go into bins of equal width by x, how likely the rollout engine found a token or a
response; of y, the log ratio, a bin keeps percentiles 2, 50 and 98 (interpolated linearly).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from alp_megatron.metrics.tokens import Numerator, TokenRatios

LOW, HIGH = 2, 98  # percentiles
BINS = 50
FEWEST = 50  # tokens without which a bin's percentiles would say little


@dataclass(frozen=True)
class Bin:
    """The points with x (nats) in [start, end); the first and last bin also hold those beyond.

    `count` is their number; `p02`, `p50` and `p98` are percentiles of their log ratio, in nats.
    """

    start: float
    end: float
    count: int
    p02: float
    p50: float
    p98: float

    @property
    def width(self) -> float:
        return self.p98 - self.p02


def envelope_width(train_logprobs: ArrayLike, rollout_logprobs: ArrayLike) -> float:
    """Returns percentile 98 less 2 of `train - rollout` (nats), interpolated linearly; of [t]."""
    low, high = np.percentile(_log_ratio(train_logprobs, rollout_logprobs), (LOW, HIGH))
    return float(high - low)


def envelope_bins(
    train_logprobs: ArrayLike, rollout_logprobs: ArrayLike, lowest: float
) -> list[Bin]:
    """Makes the envelope of tokens by the rollout engine's log-probability, in fp64.

    Args:
        train_logprobs, rollout_logprobs: [t], nats.
        lowest: where the first of the 50 bins of equal width starts; the last one ends at 0.
            Engines that are compared share it, so that a bin means the same for all of them.

    Returns the bins that hold at least 50 tokens, in order.
    """
    log_ratio = _log_ratio(train_logprobs, rollout_logprobs)
    rollout = np.asarray(rollout_logprobs, dtype=np.float64)
    return binned(rollout, log_ratio, np.linspace(lowest, 0, BINS + 1), FEWEST)


def binned(x: np.ndarray, y: np.ndarray, edges: np.ndarray, fewest: int) -> list[Bin]:
    """Returns the bins that hold at least `fewest` points, in order.

    Args:
        x, y: [n], nats. A point beyond the edges belongs to the bin nearest to it.
        edges: [bins + 1], ascending.
    """
    bins = len(edges) - 1
    index = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, bins - 1)
    order = np.argsort(index, kind="stable")
    members = np.split(y[order], np.searchsorted(index[order], np.arange(1, bins)))
    return [
        Bin(
            float(edges[i]),
            float(edges[i + 1]),
            values.size,
            *(float(p) for p in np.percentile(values, (LOW, 50, HIGH))),
        )
        for i, values in enumerate(members)
        if values.size >= fewest
    ]


def _log_ratio(train_logprobs: ArrayLike, rollout_logprobs: ArrayLike) -> np.ndarray:
    train = np.asarray(train_logprobs, dtype=np.float64)
    return train - np.asarray(rollout_logprobs, dtype=np.float64)


Level = Literal["token", "sequence_sum", "sequence_mean"]
FEWEST_SEQUENCES = 10  # one step has few responses; of 10, percentiles 2 and 98 near the extremes


@dataclass(frozen=True)
class Points:
    """Tokens or responses, [n] each.

    Attributes:
        x: fp64, the rollout engine's log-probability, nats.
        y: fp64, the log ratio of the trainer to the rollout engine, nats.
        update: which update of the step trained on it.
    """

    level: Level
    x: np.ndarray
    y: np.ndarray
    update: np.ndarray


def envelope_points(ratios: TokenRatios, numerator: Numerator, level: Level) -> Points:
    """Returns tokens or responses as points. With d = log pi_train - log pi_rollout, in fp64:

        token          x = log pi_rollout       y = d
        sequence_sum   x = sum log pi_rollout   y = sum d, over the tokens of a response
        sequence_mean  the same, divided by their number

    Only tokens that are in `ratios` count: those that the policy sampled.
    """
    rollout = ratios.rollout_logprobs.astype(np.float64)
    log_ratio = ratios.train_logprobs(numerator).astype(np.float64) - rollout
    if level == "token":
        return Points(level, rollout, log_ratio, ratios.update)
    _, first, sequence = np.unique(ratios.sample_id, return_index=True, return_inverse=True)
    x, y = (np.bincount(sequence, weights=values) for values in (rollout, log_ratio))
    if level == "sequence_mean":
        lengths = np.bincount(sequence)
        x, y = x / lengths, y / lengths
    return Points(level, x, y, ratios.update[first])


def envelope_edges(together: Iterable[Points]) -> np.ndarray:
    """Returns edges of equal bins that envelopes of one level share, so that they can be compared.

    Tokens get 50 bins from the lowest x to 0. Responses are too few for that: they get as many as
    leave 20 of the largest envelope's to a bin on average, at most 50, from the tenth lowest x of
    an envelope to the tenth highest; what lies beyond goes to the first and the last bin.
    """
    together = [points for points in together if points.x.size]
    if not together:
        return np.linspace(-1, 0, 2)
    lowest = min(points.x.min() for points in together)
    if together[0].level == "token":
        low, high, bins = lowest, 0.0, BINS
    else:
        low = min(np.sort(points.x)[:FEWEST_SEQUENCES][-1] for points in together)
        high = max(np.sort(points.x)[-FEWEST_SEQUENCES:][0] for points in together)
        if low >= high:  # fewer than twenty
            low, high = lowest, max(points.x.max() for points in together)
        most = max(points.x.size for points in together)
        bins = min(max(most // (2 * FEWEST_SEQUENCES), 1), BINS)
    # Where all are the same, a bin still needs a width.
    return np.linspace(low if low < high else high - 1e-6, high, bins + 1)


def envelope(points: Points, edges: np.ndarray) -> list[Bin]:
    """Returns the bins with at least 50 tokens, or 10 responses."""
    fewest = FEWEST if points.level == "token" else FEWEST_SEQUENCES
    return binned(points.x, points.y, edges, fewest)


def by_staleness(points: Points, groups: int) -> dict[str, Points]:
    """Splits points by the update that trained on them: "update 0", or "updates 0 to 3".

    The updates there are make up to `groups` runs of neighbours, as equal as can be; the first
    run is the freshest.
    """
    updates = np.unique(points.update)
    parts = np.array_split(updates, min(groups, len(updates))) if len(updates) else []
    split = {}
    for part in parts:
        first, last = part[0], part[-1]
        name = f"update {first}" if first == last else f"updates {first} to {last}"
        member = np.isin(points.update, part)
        split[name] = Points(
            points.level, points.x[member], points.y[member], points.update[member]
        )
    return split
