"""Rejection: tokens or sequences whose mismatch statistic is out of bounds take no part."""

from typing import Literal

import torch
from torch import Tensor

from alp_megatron.objectives.ratios import sum_by_sequence

Statistic = Literal["k1", "k2", "k3"]
Scope = Literal["token", "sequence_sum", "sequence_mean", "sequence_max"]


def rejection_statistic(
    log_weight: Tensor,
    mask: Tensor,
    sequence_index: Tensor,
    num_sequences: int,
    *,
    by: Statistic,
    over: Scope,
) -> Tensor:
    """A statistic of l = log(pi_old / pi_rollout), in nats, at each token.

        k1 = -l        k2 = l^2 / 2        k3 = e^l - 1 - l

    of the token, or the sum, mean or maximum of its sequence's unmasked tokens; 0 where there
    is none. Bounds apply to the statistic as it is written. k1 is minus log w: an upper bound
    b on it is the *lower* bound e^-b on w, that is, an upper bound on 1 / w.

    Source: Schulman 2020, "Approximating KL divergence" (samples come from the rollout policy).

    Args:
        log_weight: fp64 [t], clamped to +-20.
        mask: [t], 1 or 0.
        sequence_index: int64 [t], in [0, num_sequences).

    Returns:
        fp64 [t].
    """
    if by == "k1":
        value = -log_weight
    elif by == "k2":
        value = log_weight.square() / 2
    else:
        value = log_weight.expm1() - log_weight
    value = value.where(mask > 0, 0.0)
    if over == "token":
        return value
    if over == "sequence_max":
        unmasked = mask > 0
        top = value.new_zeros(num_sequences).scatter_reduce(
            0, sequence_index[unmasked], value[unmasked], "amax", include_self=False
        )
        return top[sequence_index]
    total = sum_by_sequence(value, sequence_index, num_sequences)
    if over == "sequence_mean":
        total = total / sum_by_sequence(mask, sequence_index, num_sequences).clamp(min=1)
    return total[sequence_index]


def accepted(statistic: Tensor, low: float | None, high: float | None) -> Tensor:
    """low <= statistic <= high, bool [t]; None is no bound."""
    inside = torch.ones_like(statistic, dtype=torch.bool)
    if low is not None:
        inside &= statistic >= low
    if high is not None:
        inside &= statistic <= high
    return inside
