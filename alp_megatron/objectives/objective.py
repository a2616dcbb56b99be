"""The loss that all methods share."""

from dataclasses import dataclass

from torch import Tensor

from alp_megatron.config.schema import ObjectiveConfig
from alp_megatron.objectives.correction import Correction
from alp_megatron.objectives.methods import METHODS
from alp_megatron.objectives.normalization import loss_weights
from alp_megatron.objectives.policy_loss import clipped_policy_loss
from alp_megatron.objectives.ratios import log_ratio


@dataclass(frozen=True)
class LossInputs:
    """A micro-batch of whole sequences, flat over response tokens.

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
    """`loss` is this micro-batch's share of the mini-batch's loss; the rest is [t], detached.

    The flags are those of `PolicyLoss`, False at masked and at rejected tokens.
    """

    loss: Tensor
    log_ratio: Tensor
    clip_low: Tensor
    clip_high: Tensor
    dual_clip: Tensor


def policy_objective(config: ObjectiveConfig, batch: LossInputs) -> LossOutput:
    """The loss of a micro-batch. Sum it over micro-batches and data-parallel ranks.

    sum_t n_t c_t L_t, with L the clipped loss, c the correction's weights and n the
    normalisation. A rejected token has no loss, but still counts in its sequence's ratio.
    """
    method = METHODS[config.method]
    denominator = batch.rollout_logprobs if method.denominator == "rollout" else batch.old_logprobs
    assert denominator is not None, f"method {config.method} needs old_logprobs"
    assert config.correction.is_on == (batch.correction is not None)
    sequences = (batch.sequence_index, batch.num_sequences)

    ratio = log_ratio(
        batch.logprobs,
        denominator,
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
