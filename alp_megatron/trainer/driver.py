"""Does rank 0's side of a step: prompts, generation, rewards, evaluation."""

from dataclasses import dataclass

import torch

from alp_megatron.config.schema import Config
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.objectives.advantages import group_advantages
from alp_megatron.rollout.engine import RolloutEngine, SamplingSpec
from alp_megatron.tasks.task import Task

# Seeds of the sampler: steps count from 0, evaluations are told apart by this.
_EVALUATION_SEED = 2**40


@dataclass
class Driver:
    """Asks the engine and the task, which only rank 0 has.

    Attributes:
        stop_token_ids: all tokens that end a response.
    """

    config: Config
    engine: RolloutEngine
    task: Task
    stop_token_ids: tuple[int, ...]

    def rollout(self, step: int) -> list[Trajectory]:
        """Returns the step's samples, unscored: a function of seed, step and weights alone."""
        rollout = self.config.rollout
        prompts = [item.prompt_ids for item in self.task.train_batch(step)]
        sampling = self._sampling(rollout.samples_per_prompt, rollout.temperature, step)
        groups = self.engine.generate(prompts, sampling)
        trajectories = [trajectory for group in groups for trajectory in group]
        for trajectory in trajectories:
            trajectory.sample_id += step * len(prompts) * rollout.samples_per_prompt
            trajectory.group_id += step * len(prompts)
        return trajectories

    def reward(self, step: int, trajectories: list[Trajectory]) -> None:
        """Fills in rewards and group-relative advantages."""
        n = self.config.rollout.samples_per_prompt
        items = [item for item in self.task.train_batch(step) for _ in range(n)]
        rewards = self.task.rewards(items, [t.response_ids for t in trajectories])
        groups = torch.tensor([t.group_id for t in trajectories])
        advantages = group_advantages(torch.tensor(rewards), groups).tolist()
        for trajectory, reward, advantage in zip(trajectories, rewards, advantages, strict=True):
            trajectory.reward, trajectory.advantage = reward, advantage

    def evaluate(self) -> float:
        """Returns the mean reward over the fixed evaluation prompts, with the engine's weights."""
        evaluation = self.config.evaluation
        items = self.task.eval_items()
        sampling = self._sampling(
            evaluation.samples_per_prompt, evaluation.temperature, _EVALUATION_SEED
        )
        groups = self.engine.generate([item.prompt_ids for item in items], sampling)
        asked = [item for item in items for _ in range(evaluation.samples_per_prompt)]
        answers = [trajectory.response_ids for group in groups for trajectory in group]
        rewards = self.task.rewards(asked, answers)
        return sum(rewards) / len(rewards)

    def _sampling(self, n: int, temperature: float, stream: int) -> SamplingSpec:
        rollout = self.config.rollout
        seed = self.config.seed if rollout.seed is None else rollout.seed
        return SamplingSpec(
            n=n,
            temperature=temperature,
            max_new_tokens=rollout.max_new_tokens,
            stop_token_ids=self.stop_token_ids,
            seed=(seed * 1_000_003 + stream) % 2**63,
        )


def stop_tokens(config: Config, hf: dict, tokenizer) -> tuple[int, ...]:
    """Returns the configured stop tokens and the end-of-sequence ones of tokenizer and model."""
    of_model = hf.get("eos_token_id")
    own = of_model if isinstance(of_model, list) else [of_model]
    stops = {*config.rollout.stop_token_ids, *own, tokenizer.eos_token_id} - {None}
    return tuple(sorted(stops))
