"""Percentile bootstrap intervals of means over seeds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000
LEVEL = 95  # per cent
_SEED = 0  # the same data give the same interval, whatever else was computed before


@dataclass(frozen=True)
class Interval:
    """A mean over `n` seeds; `low` and `high` bound its 95 % interval, None with one seed."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def shown(self, form: str) -> str:
        """Returns '0.512 [0.480, 0.541]', or the mean alone."""
        text = format(self.mean, form)
        if self.low is None:
            return text
        return f"{text} [{self.low:{form}}, {self.high:{form}}]"


def mean_interval(values: ArrayLike) -> Interval:
    """Returns the mean of one value a seed; `values` is [n] with n >= 1."""
    values = np.asarray(values, dtype=np.float64)
    mean, band = float(values.mean()), mean_band(values[:, None])
    if band is None:
        return Interval(mean, None, None, 1)
    return Interval(mean, float(band[0][0]), float(band[1][0]), len(values))


def mean_band(values: ArrayLike) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the intervals' ends of each column's mean; None where there is one row.

    Rows are drawn with replacement, 10,000 times, and the ends are percentiles 2.5 and 97.5 of the
    resampled means, interpolated linearly (Efron and Tibshirani 1993, chapter 13). Everything is
    computed in fp64 from a fixed seed. All columns share the draws.

    Args:
        values: [n, k], one row a seed.
    """
    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n == 1:
        return None
    draws = np.random.default_rng(_SEED).integers(0, n, size=(RESAMPLES, n))
    counts = np.stack([np.bincount(draw, minlength=n) for draw in draws])  # [resamples, n]
    means = counts @ values / n
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(means, (tail, 100 - tail), axis=0)
    return low, high
