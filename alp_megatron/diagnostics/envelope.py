"""The envelope of the log ratio between two policies: how wide it is, and for which tokens."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

LOW, HIGH = 2, 98  # percentiles
BINS = 50
FEWEST = 50  # tokens without which a bin's percentiles would say little


@dataclass(frozen=True)
class Bin:
    """The tokens whose rollout log-probability (nats) is in [start, end), the last bin's end in it.

    `p02`, `p50` and `p98` are percentiles of their log ratio, in nats.
    """

    start: float
    end: float
    tokens: int
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
    """The envelope by the rollout engine's log-probability, in fp64.

    Args:
        train_logprobs, rollout_logprobs: [t], nats.
        lowest: where the first of the 50 bins of equal width starts; the last one ends at 0.
            Engines that are compared share it, so that a bin means the same for all of them.

    Returns the bins that hold at least 50 tokens, in order.
    """
    log_ratio = _log_ratio(train_logprobs, rollout_logprobs)
    rollout = np.asarray(rollout_logprobs, dtype=np.float64)
    edges = np.linspace(lowest, 0, BINS + 1)
    index = np.clip(np.searchsorted(edges, rollout, side="right") - 1, 0, BINS - 1)
    bins = []
    for i in range(BINS):
        members = log_ratio[index == i]
        if members.size >= FEWEST:
            low, middle, high = np.percentile(members, (LOW, 50, HIGH))
            bins.append(
                Bin(
                    float(edges[i]),
                    float(edges[i + 1]),
                    members.size,
                    float(low),
                    float(middle),
                    float(high),
                )
            )
    return bins


def _log_ratio(train_logprobs: ArrayLike, rollout_logprobs: ArrayLike) -> np.ndarray:
    train = np.asarray(train_logprobs, dtype=np.float64)
    return train - np.asarray(rollout_logprobs, dtype=np.float64)
