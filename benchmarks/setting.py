"""What the measures share: the quickstart's configuration and samples like those it draws."""

import random

from alp_megatron.config.load import load_config
from alp_megatron.config.schema import Config
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.tasks.task import build_task

QUICKSTART = "configs/quickstart.yaml"
# The quickstart's responses: an answer with its working, seldom a guess.
RESPONSE_TOKENS = (12, 26)


def quickstart(method: str = "alp") -> Config:
    return load_config(QUICKSTART, [f"objective.method={method}"])


def mini_batch(config: Config) -> list[Trajectory]:
    """One update's samples: real prompts, random responses of the quickstart's lengths."""
    rng = random.Random(0)
    samples = config.rollout.samples_per_prompt
    prompts = [item.prompt_ids for item in build_task(config).train_batch(0)]
    return [
        _trajectory(index, prompts[index // samples], index // samples, rng)
        for index in range(config.trainer.global_batch_size)
    ]


def _trajectory(index: int, prompt: list[int], group: int, rng: random.Random) -> Trajectory:
    length = rng.randint(*RESPONSE_TOKENS)
    return Trajectory(
        sample_id=index,
        group_id=group,
        prompt_ids=prompt,
        response_ids=[rng.randrange(3, 64) for _ in range(length)],
        loss_mask=[1] * length,
        rollout_logprobs=[rng.uniform(-4, 0) for _ in range(length)],
        policy_version=0,
        advantage=rng.gauss(0, 1),
    )
