"""Computes importance ratios between the training policy and the one that is its reference."""

from typing import Literal

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # e^20 = 4.9e8: far outside any clip range, and finite in fp32


def log_ratio(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    mask: Tensor,
    sequence_index: Tensor,
    num_sequences: int,
    *,
    level: Literal["token", "sequence"],
    length_normalized: bool = False,
) -> Tensor:
    """Returns the log importance ratio of each token, clamped to +-20.

    With `d_t = logprobs - reference_logprobs` and `sg` for stop-gradient:

        token:     log r_t = d_t
        sequence:  log r_t = sg[sum_s m_s d_s] + logp_t - sg[logp_t]

    `length_normalized` divides the sum by the number of unmasked tokens of the sequence.
    The gradient flows through `logprobs` only, and not at all where the clamp is active.

    Args:
        logprobs: [t], the training policy, with gradient.
        reference_logprobs: [t].
        mask: [t], 1 or 0. What `logprobs` hold at masked tokens does not matter.
        sequence_index: int64 [t], in [0, num_sequences).

    Returns:
        [t]. At masked tokens 0 (token level) or the ratio of their sequence.
    """
    difference = (logprobs - reference_logprobs.detach()).where(mask > 0, 0.0)
    if level == "sequence":
        total = sum_by_sequence(difference.detach(), sequence_index, num_sequences)
        if length_normalized:
            total = total / sum_by_sequence(mask, sequence_index, num_sequences).clamp(min=1)
        # x - sg[x] is exactly 0 and has the gradient of logp_t.
        difference = total.to(difference.dtype)[sequence_index] + (difference - difference.detach())
    return difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def sum_by_sequence(values: Tensor, sequence_index: Tensor, num_sequences: int) -> Tensor:
    """Returns the sum of each sequence's values [t]: fp64 [num_sequences].

    In fp64, so that the order in which a GPU's atomic additions arrive does not show after
    rounding back to fp32.
    """
    total = values.new_zeros(num_sequences, dtype=torch.float64)
    return total.index_add_(0, sequence_index, values.double())
