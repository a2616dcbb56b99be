"""A task: where prompts come from and how responses are scored."""

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.hf.tokenizer import load_tokenizer
from alp_megatron.tasks.arithmetic import Problem, problems
from alp_megatron.tasks.dataset import PromptItem, read_items, tokenize_prompt
from alp_megatron.tasks.reward import score

# Of its own, not the run's seed: scores of runs with different seeds are comparable.
_EVAL_SEED = "evaluation"


class PromptSource(Protocol):
    def batch(self, step: int) -> list[PromptItem]:
        """The prompts of a step >= 0; the same list whenever it is asked for."""


class ShuffledItems:
    """Passes over a list of items, each pass in another order; batches may span two passes."""

    def __init__(self, items: list[PromptItem], seed: int, batch_size: int):
        self._items, self._seed, self._batch_size = items, seed, batch_size
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def batch(self, step: int) -> list[PromptItem]:
        first = step * self._batch_size
        places = (divmod(i, len(self._items)) for i in range(first, first + self._batch_size))
        return [self._items[self._order(epoch)[offset]] for epoch, offset in places]

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._items)))
        random.Random(f"{self._seed}:{epoch}").shuffle(order)
        return order


class ArithmeticPrompts:
    """Fresh training problems every step."""

    def __init__(self, tokenizer, seed: int, batch_size: int):
        self._tokenizer, self._seed, self._batch_size = tokenizer, seed, batch_size

    def batch(self, step: int) -> list[PromptItem]:
        drawn = problems(f"{self._seed}:{step}", self._batch_size, "train")
        return [arithmetic_item(self._tokenizer, problem) for problem in drawn]


def arithmetic_item(tokenizer, problem: Problem) -> PromptItem:
    prompt_ids = tokenize_prompt(tokenizer, [{"role": "user", "content": problem.text}])
    return PromptItem(prompt_ids, str(problem.answer), "arithmetic", {"problem": problem.text})


def arithmetic_eval_items(tokenizer, count: int) -> list[PromptItem]:
    return [arithmetic_item(tokenizer, p) for p in problems(_EVAL_SEED, count, "eval")]


def first_shuffled(items: list[PromptItem], count: int) -> list[PromptItem]:
    """A fixed choice of `count` items; all of them where there are fewer."""
    return random.Random(_EVAL_SEED).sample(items, min(count, len(items)))


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
