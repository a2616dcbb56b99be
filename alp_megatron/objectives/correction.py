"""Turns the mismatch w = pi_old / pi_rollout of a mini-batch into weights and rejections."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from alp_megatron.config.schema import CorrectionConfig
from alp_megatron.objectives.ratios import log_ratio, sum_by_sequence


def truncated_weight(log_weight: Tensor, high: float) -> Tensor:
    """Returns TIS: min(w, C), the factor of a token's loss.

    Sources: Ionides 2008, "Truncated importance sampling"; Yao et al. 2025, "Your efficient
    RL framework secretly brings you off-policy RL training", for w = pi_old / pi_rollout.

    Args:
        log_weight: [t], log w of the token, or of its sequence.
        high: C.
    """
    return log_weight.exp().clamp(max=high)


def in_window(log_weight: Tensor, low: float, high: float) -> Tensor:
    """Returns 1[lo <= w <= hi], bool [t]: MIS as a plain mask, both bounds included.

    `log_weight` is that of the token, of its sequence (e^S) or of its sequence per token (e^G):
    which one decides what is masked together, not how the policy's own ratio is made.
    """
    weight = log_weight.exp()
    return (weight >= low) & (weight <= high)


def masked_weight(log_weight: Tensor, low: float, high: float) -> Tensor:
    """Returns w 1[lo <= w <= hi]: MIS as a weight that is 0 outside of the window, [t].

    Sources: Liu et al. 2025, "When speed kills stability" (token and sequence); at the token
    level with [0.5, 5] it is IcePop, Ling team 2025, "Every step evolves".
    """
    return log_weight.exp().where(in_window(log_weight, low, high), 0.0)


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
    """Returns a statistic of l = log(pi_old / pi_rollout), in nats, at each token.

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
    """Returns low <= statistic <= high, bool [t]; None is no bound."""
    inside = torch.ones_like(statistic, dtype=torch.bool)
    if low is not None:
        inside &= statistic >= low
    if high is not None:
        inside &= statistic <= high
    return inside


def without_veto(
    log_weight: Tensor, mask: Tensor, sequence_index: Tensor, num_sequences: int, threshold: float
) -> Tensor:
    """Returns False for every token of a sequence where some unmasked w_t is below the threshold.

    It looks at w = pi_old / pi_rollout only from below: tokens that the engine sampled and the
    trainer finds next to impossible. Source: Liu et al. 2025, "When speed kills stability".

    Args:
        log_weight: fp64 [t], log w of each token.
        threshold: of w, for example 1e-4.

    Returns:
        bool [t].
    """
    catastrophic = (log_weight.exp() < threshold) & (mask > 0)
    return (sum_by_sequence(catastrophic, sequence_index, num_sequences) == 0)[sequence_index]


@dataclass(frozen=True)
class Correction:
    """Holds constants of the loss, without gradient.

    Attributes:
        weight: fp64 [t], the factor of each token's loss; 0 where it is rejected or masked.
        kept: bool [t], unmasked and not rejected.
    """

    weight: Tensor
    kept: Tensor


def correct(
    settings: CorrectionConfig,
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    mask: Tensor,
    sequence_index: Tensor,
    num_sequences: int,
) -> Correction:
    """Returns the weight of every token, and whether anything rejects it.

    The level of the weight: w_t of the token; e^S with S = sum_s m_s log w_s of its `sequence`;
    e^G with G = S / |y| (`geometric`). Every exponent is clamped to +-20. A weight out of its
    window, a rejection statistic out of bounds and a veto each reject on their own; none of
    them changes what the others see.

    Args:
        old_logprobs: [t], the training engine's at the rollout's weights, unperturbed.
        rollout_logprobs: [t].
        mask: [t], 1 or 0.
        sequence_index: int64 [t], in [0, num_sequences).
    """
    sequences = (sequence_index, num_sequences)
    log_weight = partial(
        log_ratio, old_logprobs.double(), rollout_logprobs.double(), mask, *sequences
    )
    of_token = log_weight(level="token")
    weight, kept = torch.ones_like(of_token), mask > 0

    if settings.weight != "none":
        leveled = of_token
        if settings.weight_level != "token":
            geometric = settings.weight_level == "geometric"
            leveled = log_weight(level="sequence", length_normalized=geometric)
        assert settings.weight_high is not None, "validate asks for it"
        window = (settings.weight_low or 0.0, settings.weight_high)
        if settings.weight == "truncated":
            weight = truncated_weight(leveled, settings.weight_high)
        else:
            kept = kept & in_window(leveled, *window)
            if settings.weight == "masked":
                weight = masked_weight(leveled, *window)
    if settings.reject_by is not None:
        statistic = rejection_statistic(
            of_token, mask, *sequences, by=settings.reject_by, over=settings.reject_over
        )
        kept = kept & accepted(statistic, settings.reject_low, settings.reject_high)
    if settings.veto is not None:
        kept = kept & without_veto(of_token, mask, *sequences, settings.veto)
    return Correction(weight.where(kept, 0.0), kept)
