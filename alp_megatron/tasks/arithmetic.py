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
    drawn = []
    while len(drawn) < count:
        problem = _draw(rng)
        if problem.split == split:
            drawn.append(problem)
    return drawn


def worked_solution(
    problem: Problem, *, error_rate: float = 0.0, rng: random.Random | None = None
) -> str:
    """The supervised target, such as `7+8=15;15-3=12;12+6=18`, without the end token.

    With `error_rate` (which needs `rng`), each result is off by one with that probability, as
    in work done by hand, and carried on. A model trained on such text slips as often when it
    is sampled, while its likeliest answer is right: reinforcement learning has something to
    mend.
    """
    result, lines = problem.operands[0], []
    for op, operand in zip(problem.operators, problem.operands[1:], strict=True):
        left, result = result, _apply(result, op, operand)
        if error_rate and rng.random() < error_rate:
            result += rng.choice((-1, 1))
        lines.append(f"{left}{op}{operand}={result}")
    return ";".join(lines)


def _draw(rng: random.Random) -> Problem:
    while True:
        operands = tuple(rng.randint(1, 9) for _ in range(_NUM_OPERANDS))
        problem = Problem(operands, "".join(rng.choices("+-", k=_NUM_OPERANDS - 1)))
        if min(problem.results) >= 0:
            return problem


def _apply(left: int, op: str, right: int) -> int:
    return left + right if op == "+" else left - right
