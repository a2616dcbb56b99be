"""What the mismatch w = pi_old / pi_rollout does to a mini-batch: weights and rejections."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from alp_megatron.config.schema import CorrectionConfig
from alp_megatron.objectives.mis import in_window, masked_weight
from alp_megatron.objectives.ratios import log_ratio
from alp_megatron.objectives.rejection import accepted, rejection_statistic
from alp_megatron.objectives.tis import truncated_weight
from alp_megatron.objectives.veto import without_veto


@dataclass(frozen=True)
class Correction:
    """Constants of the loss, without gradient.

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
    """The weight of every token, and whether anything rejects it.

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
