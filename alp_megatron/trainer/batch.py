"""From trajectories to mini-batches, replicas' shares and the inputs of the loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alp_megatron.model.microbatch import MicroBatch, Sequence
from alp_megatron.objectives.objective import LossInputs
from alp_megatron.trajectory import Trajectory


def minibatches(
    trajectories: list[Trajectory], size: int, seed: int, step: int
) -> list[list[Trajectory]]:
    """The step's samples in the order of their updates: shuffled by (seed, step) alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    order = torch.randperm(len(trajectories), generator=generator).tolist()
    shuffled = [trajectories[i] for i in order]
    return [shuffled[i : i + size] for i in range(0, len(shuffled), size)]


def as_sequence(trajectory: Trajectory) -> Sequence:
    """Prompt and response; the response is to be predicted."""
    return Sequence(
        trajectory.sample_id,
        trajectory.prompt_ids + trajectory.response_ids,
        first_predicted=len(trajectory.prompt_ids),
    )


@dataclass(frozen=True)
class MiniBatch:
    """What the loss of one update must know beside the log-probabilities.

    Attributes:
        trajectories: by sample id, of the whole mini-batch.
        old_logprobs: by sample id, of the response tokens, or None where the method needs none.
    """

    trajectories: dict[int, Trajectory]
    old_logprobs: dict[int, Tensor] | None

    @property
    def num_tokens(self) -> int:
        return sum(sum(t.loss_mask) for t in self.trajectories.values())

    def loss_inputs(self, logprobs: Tensor, batch: MicroBatch) -> LossInputs:
        """The flat tensors of one micro-batch, aligned with its predicted tokens."""
        members = [self.trajectories[i] for i in batch.sequence_sample_ids]
        old = None
        if self.old_logprobs is not None:
            old = torch.cat([self.old_logprobs[t.sample_id] for t in members]).to(logprobs)

        def flat(values: list[list[float]]) -> Tensor:
            return torch.tensor([x for row in values for x in row], device=logprobs.device)

        return LossInputs(
            logprobs=logprobs,
            rollout_logprobs=flat([t.rollout_logprobs for t in members]),
            old_logprobs=old,
            advantages=flat([[t.advantage] * len(t.response_ids) for t in members]),
            mask=flat([t.loss_mask for t in members]).to(logprobs.dtype),
            sequence_index=batch.sequence_index,
            num_sequences=len(members),
            num_tokens_global=self.num_tokens,
            num_sequences_global=len(self.trajectories),
        )
