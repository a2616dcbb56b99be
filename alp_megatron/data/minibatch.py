"""Makes mini-batches of trajectories, and the inputs of their loss."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from alp_megatron.config.methods import needs_old_logprobs
from alp_megatron.config.schema import ObjectiveConfig
from alp_megatron.data.microbatch import MicroBatch, Sequence
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.objectives.correction import Correction, correct
from alp_megatron.objectives.loss import LossInputs


def minibatches(
    trajectories: list[Trajectory], size: int, seed: int, step: int
) -> list[list[Trajectory]]:
    """Returns the step's samples in the order of their updates, shuffled by (seed, step) alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    order = torch.randperm(len(trajectories), generator=generator).tolist()
    shuffled = [trajectories[i] for i in order]
    return [shuffled[i : i + size] for i in range(0, len(shuffled), size)]


def as_sequence(trajectory: Trajectory) -> Sequence:
    """Returns prompt and response, of which the response is to be predicted."""
    return Sequence(
        trajectory.sample_id,
        trajectory.prompt_ids + trajectory.response_ids,
        first_predicted=len(trajectory.prompt_ids),
    )


@dataclass(frozen=True)
class MiniBatch:
    """Holds what the loss of one update must know beside the log-probabilities.

    Attributes:
        trajectories: by sample id, of the whole mini-batch.
        old_logprobs: by sample id, of the response tokens, or None where the method needs none.
        corrections: by sample id, or None where nothing is corrected.
        num_tokens, num_sequences: what the loss is divided by.
    """

    trajectories: dict[int, Trajectory]
    old_logprobs: dict[int, Tensor] | None
    corrections: dict[int, Correction] | None
    num_tokens: int
    num_sequences: int

    @classmethod
    def of(
        cls,
        objective: ObjectiveConfig,
        trajectories: list[Trajectory],
        old_logprobs: dict[int, Tensor] | None,
    ) -> "MiniBatch":
        """Makes the corrections too, of the whole mini-batch on every rank alike: what is rejected,
        and what the loss is divided by, cannot depend on how it is dealt out."""
        assert all(t.advantage is not None for t in trajectories), "a trajectory is not scored"
        by_id = {t.sample_id: t for t in trajectories}
        lengths = [len(t.response_ids) for t in trajectories]
        index = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        mask = _flat([t.loss_mask for t in trajectories])
        counted, lost = mask > 0, 0
        if not needs_old_logprobs(objective):
            old_logprobs = None
        corrections = None
        if objective.correction.is_on:
            assert old_logprobs is not None, "a correction needs old_logprobs"
            old = torch.cat([old_logprobs[t.sample_id].cpu() for t in trajectories])
            rollout = _flat([t.rollout_logprobs for t in trajectories])
            made = correct(objective.correction, old, rollout, mask, index, len(lengths))
            parts = zip(made.weight.split(lengths), made.kept.split(lengths), strict=True)
            corrections = {
                t.sample_id: Correction(*part) for t, part in zip(trajectories, parts, strict=True)
            }
            if objective.correction.denominator == "kept":
                lost = len(index[counted].unique()) - len(index[made.kept].unique())
                counted = made.kept
        return cls(by_id, old_logprobs, corrections, int(counted.sum()), len(by_id) - lost)

    def loss_inputs(
        self, batch: MicroBatch, dtype: torch.dtype = torch.float32
    ) -> Callable[[Tensor], LossInputs]:
        """Returns LossInputs of one micro-batch but for the log-probabilities, which its forward
        pass makes: flat tensors on its device, aligned with its predicted tokens."""
        members = [self.trajectories[i] for i in batch.sequence_sample_ids]
        device = batch.tokens.device

        def joined(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts or [torch.empty(0)]).to(device)

        def flat(values: list[list[float]]) -> Tensor:
            return _flat(values).to(device, dtype)

        old = correction = None
        if self.old_logprobs is not None:
            old = joined([self.old_logprobs[t.sample_id] for t in members]).to(dtype)
        if self.corrections is not None:
            of_members = [self.corrections[t.sample_id] for t in members]
            correction = Correction(
                joined([c.weight for c in of_members]), joined([c.kept for c in of_members]).bool()
            )
        return partial(
            LossInputs,
            rollout_logprobs=flat([t.rollout_logprobs for t in members]),
            old_logprobs=old,
            advantages=flat([[t.advantage] * len(t.response_ids) for t in members]),
            mask=flat([t.loss_mask for t in members]),
            sequence_index=batch.sequence_index,
            num_sequences=len(members),
            num_tokens_global=self.num_tokens,
            num_sequences_global=self.num_sequences,
            correction=correction,
        )


def _flat(values: list[list[float]]) -> Tensor:
    return torch.tensor([x for row in values for x in row], dtype=torch.float64)
