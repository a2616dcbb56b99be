"""The envelope of the log ratio between two policies: how wide it is, and where.

Points (x, y) go into bins of equal width by x, how likely the rollout engine found a token or a
response; of y, the log ratio, a bin keeps percentiles 2, 50 and 98 (interpolated linearly).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

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
    """Percentile 98 less percentile 2 of `train - rollout` (nats), interpolated linearly; [t]."""
    low, high = np.percentile(_log_ratio(train_logprobs, rollout_logprobs), (LOW, HIGH))
    return float(high - low)


def envelope_bins(
    train_logprobs: ArrayLike, rollout_logprobs: ArrayLike, lowest: float
) -> list[Bin]:
    """The envelope of tokens by the rollout engine's log-probability, in fp64.

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
    """The bins that hold at least `fewest` points, in order.

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
