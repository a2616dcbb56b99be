"""A verifiable arithmetic task for a character-level model of about a million parameters.

The prompt is `7+8-3+6`; the answer shows its working, `7+8=15;15-3=12;12+6=18`, and the last
number counts. A hash of the problem says whether it is for training or for evaluation, so
the two never meet.
"""

import hashlib
import random
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Split = Literal["train", "eval"]
_NUM_OPERANDS = 4
_EVAL_SHARE = 1 / 8


@dataclass(frozen=True)
class Problem:
    """One-digit operands worked from left to right; no result on the way is negative."""

    operands: tuple[int, ...]
    operators: str  # one of + and - between each two operands

    @property
    def text(self) -> str:
        rest = zip(self.operators, self.operands[1:], strict=True)
        return str(self.operands[0]) + "".join(f"{op}{n}" for op, n in rest)

    @property
    def results(self) -> list[int]:
        """The result of each operation; the last is the answer."""
        steps = zip(self.operators, self.operands[1:], strict=True)
        return list(accumulate(steps, lambda r, s: _apply(r, *s), initial=self.operands[0]))[1:]

    @property
    def answer(self) -> int:
        return self.results[-1]

    @property
    def split(self) -> Split:
        digest = hashlib.blake2b(self.text.encode(), digest_size=8).digest()
        return "eval" if int.from_bytes(digest, "big") < _EVAL_SHARE * 2**64 else "train"


def problems(seed: int | str, count: int, split: Split) -> list[Problem]:
    """`count` problems of a split, drawn with replacement; equal arguments give equal lists."""
    rng = random.Random(str(seed))
    drawn: list[Problem] = []
    while len(drawn) < count:
        problem = _draw(rng)
        if problem.split == split:
            drawn.append(problem)
    return drawn


def worked_solution(
    problem: Problem, *, error_rate: float = 0.0, rng: random.Random | None = None
) -> str:
    """The supervised target, such as `7+8=15;15-3=12;12+6=18`, without the end token.

    With probability `error_rate` (above 0 it needs `rng`) it is instead a guess without the
    working, near the answer but wrong, such as `7+8-3+6=19`. A model trained on the mixture
    guesses as often when it is sampled, so that its score stays below 1 - error_rate until
    reinforcement learning teaches it to show its working.
    """
    if rng is not None and rng.random() < error_rate:
        return f"{problem.text}={problem.answer + rng.choice((-2, -1, 1, 2))}"
    lefts = (problem.operands[0], *problem.results[:-1])
    steps = zip(lefts, problem.operators, problem.operands[1:], problem.results, strict=True)
    return ";".join(f"{left}{op}{right}={result}" for left, op, right, result in steps)


def _draw(rng: random.Random) -> Problem:
    while True:
        operands = tuple(rng.randint(1, 9) for _ in range(_NUM_OPERANDS))
        problem = Problem(operands, "".join(rng.choices("+-", k=_NUM_OPERANDS - 1)))
        if min(problem.results) >= 0:
            return problem


def _apply(left: int, op: str, right: int) -> int:
    return left + right if op == "+" else left - right
