"""From the engine's samples to the record that the rest of the system reads."""

from alp_megatron.rollout.engine import Sample
from alp_megatron.trajectory import Trajectory


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
