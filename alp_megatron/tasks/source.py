"""Which prompts a step gets: a function of the seed and the step, so that resume needs no state."""

import random
from functools import lru_cache
from typing import Protocol

from alp_megatron.tasks.arithmetic import Problem, problems
from alp_megatron.tasks.dataset import PromptItem, tokenize_prompt

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
