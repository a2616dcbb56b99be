"""Computes the loss that all methods share: a clipped ratio, a weight for every token."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alp_megatron.config.methods import METHODS
from alp_megatron.config.schema import ObjectiveConfig
from alp_megatron.objectives.correction import Correction
from alp_megatron.objectives.ratios import log_ratio, sum_by_sequence


@dataclass(frozen=True)
class PolicyLoss:
    """Holds per-token losses, and which have no gradient because of clipping; each [t].

    The three flags are disjoint. A ratio that is out of bounds on the side that the
    objective does not clip (A > 0 and r < 1 - eps_low, for one) still has its gradient and
    is not flagged.
    """

    per_token: Tensor
    clip_low: Tensor  # A < 0 and r < 1 - eps_low
    clip_high: Tensor  # A > 0 and r > 1 + eps_high
    dual_clip: Tensor  # A < 0 and r > dual_clip


def clipped_policy_loss(
    log_ratio: Tensor,
    advantages: Tensor,
    *,
    eps_low: float,
    eps_high: float,
    dual_clip: float | None,
) -> PolicyLoss:
    """Returns PPO's clipped loss with asymmetric bounds and a dual clip for negative advantages.

        L1 = max(-A r, -A clip(r, 1 - eps_low, 1 + eps_high))
        L  = min(L1, -A c)  where A < 0,  else L1

    Args:
        log_ratio: [t], with gradient.
        advantages: [t].
        dual_clip: c > 1, or None for no dual clip.

    Sources: PPO (Schulman et al. 2017, eq. 7); dual clip: Ye et al. 2020, eq. 5.
    """
    low, high = 1.0 - eps_low, 1.0 + eps_high
    ratio = log_ratio.exp()
    negative = advantages < 0

    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high))
    dual = torch.zeros_like(negative)
    if dual_clip is not None:
        dual = negative & (ratio > dual_clip)
        loss = torch.where(dual, -advantages * dual_clip, loss)
    return PolicyLoss(
        per_token=loss,
        clip_low=negative & (ratio < low),
        clip_high=(advantages > 0) & (ratio > high),
        dual_clip=dual,
    )


def loss_weights(
    mask: Tensor,
    sequence_index: Tensor,
    num_sequences: int,
    *,
    mode: Literal["token", "sequence"],
    num_tokens_global: int,
    num_sequences_global: int,
) -> Tensor:
    """Returns weights whose products with the per-token losses add up to the loss.

        token:     w_t = m_t / (unmasked tokens of the mini-batch)
        sequence:  w_t = m_t / (unmasked tokens of t's sequence * sequences of the mini-batch)

    The global counts are those of the whole mini-batch: all micro-batches of all
    data-parallel ranks. So the loss of the mini-batch is the plain *sum* over micro-batches
    and ranks, and does not depend on how the sequences were dealt out. A sequence whose
    tokens are all masked has weight 0 everywhere.

    Args:
        mask: [t], 1 or 0.
        sequence_index: int64 [t], in [0, num_sequences).

    Returns:
        [t], in the mask's dtype.
    """
    if mode == "token":
        return mask / max(num_tokens_global, 1)
    length = sum_by_sequence(mask, sequence_index, num_sequences).clamp(min=1)
    return mask / (length * max(num_sequences_global, 1)).to(mask.dtype)[sequence_index]


@dataclass(frozen=True)
class LossInputs:
    """Holds a micro-batch of whole sequences, flat over response tokens.

    Attributes:
        logprobs: fp32 [t], the training policy, with gradient.
        rollout_logprobs: [t].
        old_logprobs: [t], or None where the method does not need them.
        advantages: [t].
        mask: [t], 1 where the policy sampled the token, else 0.
        sequence_index: int64 [t], in [0, num_sequences).
        num_tokens_global, num_sequences_global: of the mini-batch, see `loss_weights`; without
            what is rejected where objective.correction.denominator=kept.
        correction: of these tokens, or None where nothing is corrected.
    """

    logprobs: Tensor
    rollout_logprobs: Tensor
    old_logprobs: Tensor | None
    advantages: Tensor
    mask: Tensor
    sequence_index: Tensor
    num_sequences: int
    num_tokens_global: int
    num_sequences_global: int
    correction: Correction | None = None


@dataclass(frozen=True)
class LossOutput:
    """Holds this micro-batch's share of the mini-batch's loss; the rest is [t], detached.

    The flags are those of `PolicyLoss`, False at masked and at rejected tokens.
    """

    loss: Tensor
    log_ratio: Tensor
    clip_low: Tensor
    clip_high: Tensor
    dual_clip: Tensor


def policy_objective(config: ObjectiveConfig, batch: LossInputs) -> LossOutput:
    """Returns the loss of a micro-batch. Sum it over micro-batches and data-parallel ranks.

    sum_t n_t c_t L_t, with L the clipped loss, c the correction's weights and n the
    normalisation. A rejected token has no loss, but still counts in its sequence's ratio.
    """
    method = METHODS[config.method]
    reference = batch.rollout_logprobs if method.reference == "rollout" else batch.old_logprobs
    assert reference is not None, f"method {config.method} needs old_logprobs"
    assert config.correction.is_on == (batch.correction is not None)
    sequences = (batch.sequence_index, batch.num_sequences)

    ratio = log_ratio(
        batch.logprobs,
        reference,
        batch.mask,
        *sequences,
        level=config.level,
        length_normalized=config.length_normalized,
    )
    policy = clipped_policy_loss(
        ratio,
        batch.advantages,
        eps_low=config.eps_low,
        eps_high=config.eps_high,
        dual_clip=config.dual_clip,
    )
    taking_part = batch.mask > 0 if batch.correction is None else batch.correction.kept
    drop = config.correction.denominator == "kept"
    weights = loss_weights(
        taking_part.to(batch.mask.dtype) if drop else batch.mask,
        *sequences,
        mode=config.loss_normalization,
        num_tokens_global=batch.num_tokens_global,
        num_sequences_global=batch.num_sequences_global,
    )
    if batch.correction is not None:
        weights = weights * batch.correction.weight.to(weights.dtype)
    return LossOutput(
        loss=(policy.per_token * weights).sum(),
        log_ratio=ratio.detach(),
        clip_low=policy.clip_low & taking_part,
        clip_high=policy.clip_high & taking_part,
        dual_clip=policy.dual_clip & taking_part,
    )
