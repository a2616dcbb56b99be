"""The record that travels through the whole system: one sampled response."""

from dataclasses import dataclass

from alp_megatron.rollout.engine import Sample


@dataclass
class Trajectory:
    """One sampled response. Token ids only: nothing downstream re-tokenises text.

    Attributes:
        sample_id: unique in the run; it also addresses the sample's noise.
        group_id: samples of one prompt within one step share it.
        prompt_ids: token ids of the prompt, length P.
        response_ids: sampled token ids including the stop token if one was sampled, length R.
        loss_mask: 1 where a response token was sampled by the policy, 0 on tool output; length R.
        rollout_logprobs: log-probability (nats) of each response token under the rollout
            engine at the sampling temperature; length R.
        policy_version: number of weight syncs the engine had received when it sampled.
        finished: the response ended with a stop token, not at the length limit.
        reward: filled in by the task's reward.
        advantage: filled in by the objective's advantage estimator.
    """

    sample_id: int
    group_id: int
    prompt_ids: list[int]
    response_ids: list[int]
    loss_mask: list[int]
    rollout_logprobs: list[float]
    policy_version: int
    finished: bool = True
    reward: float = 0.0
    advantage: float = 0.0

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def to_trajectories(
    prompts: list[list[int]],
    samples: list[list[Sample]],
    first_sample_id: int,
    first_group_id: int,
) -> list[Trajectory]:
    """One trajectory a sample, numbered in order; the samples of one prompt share a group."""
    groups = zip(prompts, samples, strict=True)
    pairs = [
        (group, prompt, sample)
        for group, (prompt, of_prompt) in enumerate(groups, first_group_id)
        for sample in of_prompt
    ]
    return [
        Trajectory(
            sample_id=sample_id,
            group_id=group,
            prompt_ids=prompt,
            response_ids=sample.response_ids,
            loss_mask=[1] * len(sample.response_ids),
            rollout_logprobs=sample.logprobs,
            policy_version=sample.policy_version,
            finished=sample.finished,
        )
        for sample_id, (group, prompt, sample) in enumerate(pairs, first_sample_id)
    ]
