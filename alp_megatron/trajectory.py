"""The record that travels through the whole system: one sampled response."""

from dataclasses import dataclass


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
