"""A task: where prompts come from and how responses are scored."""

from dataclasses import dataclass
from typing import Any

from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.tasks.dataset import PromptItem, read_items
from alp_megatron.tasks.reward import score
from alp_megatron.tasks.source import (
    ArithmeticPrompts,
    PromptSource,
    ShuffledItems,
    arithmetic_eval_items,
    first_shuffled,
)
from alp_megatron.tasks.tokenizer import load_tokenizer


@dataclass
class Task:
    """What the loop asks of a task. `tokenizer` is a Hugging Face fast tokenizer."""

    tokenizer: Any
    source: PromptSource
    evaluation: list[PromptItem]
    reward_name: str

    def train_batch(self, step: int) -> list[PromptItem]:
        """The step's prompts: a function of seed and step alone."""
        return self.source.batch(step)

    def eval_items(self) -> list[PromptItem]:
        """The evaluation prompts: always the same, whatever the run's seed."""
        return self.evaluation

    def reward(self, item: PromptItem, response_ids: list[int]) -> float:
        """1.0 for a right answer, else 0.0."""
        return self.rewards([item], [response_ids])[0]

    def rewards(self, items: list[PromptItem], responses: list[list[int]]) -> list[float]:
        texts = self.tokenizer.batch_decode(responses, skip_special_tokens=True)
        return score(items, texts, self.reward_name)


def build_task(config: Config) -> Task:
    """The task that `config.task` names, with the tokenizer of `config.model.path`.

    Raises:
        UserError: a tokenizer or data file is missing or malformed, naming file and line.
    """
    tokenizer = load_tokenizer(config.model.path)
    prompts = config.rollout.prompts_per_step
    room = config.rollout.max_model_len - config.rollout.max_new_tokens
    if config.task.name == "file":
        assert config.task.train and config.task.eval, "validate() refuses a missing file"
        items = read_items(config.task.train, tokenizer, room)
        source: PromptSource = ShuffledItems(items, config.seed, prompts)
        held_out = read_items(config.task.eval, tokenizer, room)
        evaluation = first_shuffled(held_out, config.evaluation.prompts)
    else:
        source = ArithmeticPrompts(tokenizer, config.seed, prompts)
        evaluation = arithmetic_eval_items(tokenizer, config.evaluation.prompts)
        _check_room(evaluation, room)
    return Task(tokenizer, source, evaluation, config.task.reward)


def _check_room(items: list[PromptItem], room: int) -> None:
    longest = max(len(item.prompt_ids) for item in items)
    if longest > room:
        raise UserError(
            f"rollout.max_model_len minus rollout.max_new_tokens leaves {room} tokens for a "
            f"prompt, but arithmetic prompts have {longest}: raise the one or lower the other."
        )
