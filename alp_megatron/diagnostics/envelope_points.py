"""From a step's token log-probabilities to the points of an envelope, at three levels."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alp_megatron.diagnostics.envelope import BINS, FEWEST, Bin, binned
from alp_megatron.diagnostics.token_ratios import Numerator, TokenRatios

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
    """With d = log pi_train - log pi_rollout of a token, in fp64:

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
    """Edges of equal bins that envelopes of one level share, so that they can be compared.

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
    """The bins with at least 50 tokens, or 10 responses."""
    fewest = FEWEST if points.level == "token" else FEWEST_SEQUENCES
    return binned(points.x, points.y, edges, fewest)


def by_staleness(points: Points, groups: int) -> dict[str, Points]:
    """The points split by the update that trained on them: "update 0", or "updates 0 to 3".

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
