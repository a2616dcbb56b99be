"""Holds the record that travels through the whole system: one sampled response."""

from dataclasses import dataclass


@dataclass
class Trajectory:
    """Holds one sampled response as token ids: nothing downstream re-tokenises text.

    Attributes:
        sample_id: unique in the run, where it also addresses the sample's noise; an engine counts
            from 0 in each call, and the driver goes on from the samples before.
        group_id: samples of one prompt share it; counted in the same way.
        prompt_ids: token ids of the prompt, length P.
        response_ids: sampled token ids including the stop token if one was sampled, length R.
        loss_mask: 1 where a response token was sampled by the policy, 0 on tool output; length R.
        rollout_logprobs: log-probability (nats) of each response token under the rollout
            engine at the sampling temperature (greedy: at temperature 1); length R.
        policy_version: version of the weights that sampled it; 0 before the first update.
        finished: the response ended with a stop token, not at the length limit.
        reward: of the task; None until it is scored.
        advantage: of the objective's estimator; None until its group is scored.
    """

    sample_id: int
    group_id: int
    prompt_ids: list[int]
    response_ids: list[int]
    loss_mask: list[int]
    rollout_logprobs: list[float]
    policy_version: int
    finished: bool = True
    reward: float | None = None
    advantage: float | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)
