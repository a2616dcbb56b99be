"""Rewards: 1 for the right answer, 0 otherwise, from the text of a response."""

import logging
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import lru_cache

from alp_megatron.tasks.dataset import PromptItem

_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)", re.ASCII)
_MATH_VERIFY_SECONDS = 2  # a response such as 9^9^9^9 would otherwise never finish


def exact(response: str, ground_truth: str) -> float:
    """The answer is what follows the last `=`, or the whole response where there is none.

    Where the ground truth is a number, the answer's last number is compared with it by value
    (`1,024.0` is 1024). Otherwise the texts must be equal, white space at the ends aside.
    """
    answer, truth = response.rpartition("=")[2].strip(), ground_truth.strip()
    if not _NUMBER.fullmatch(truth):
        return float(answer == truth)
    numbers = _NUMBER.findall(answer)
    return float(bool(numbers) and _value(numbers[-1]) == _value(truth))


def math_verify(response: str, ground_truth: str) -> float:
    """math-verify's judgement. What it cannot parse, or not within two seconds, scores 0.

    math-verify limits time by a signal, so it works in the main thread only and raises
    ValueError elsewhere.
    """
    from math_verify import parse, verify

    answer = parse(response, parsing_timeout=_MATH_VERIFY_SECONDS)
    truth = _parsed_truth(ground_truth)
    return float(verify(truth, answer, timeout_seconds=_MATH_VERIFY_SECONDS))


REWARDS: dict[str, Callable[[str, str], float]] = {"exact": exact, "math_verify": math_verify}


def score(items: Sequence[PromptItem], responses: Sequence[str], reward: str) -> list[float]:
    """The rewards of responses to items, one for one, under a reward's name in REWARDS."""
    judge = REWARDS[reward]
    return [
        judge(response, item.ground_truth) for item, response in zip(items, responses, strict=True)
    ]


@lru_cache(maxsize=4096)
def _parsed_truth(ground_truth: str) -> list:
    from math_verify import parse

    # Data sets give bare LaTeX; math-verify looks for it inside an environment.
    parsed = parse(f"\\boxed{{{ground_truth}}}", parsing_timeout=_MATH_VERIFY_SECONDS)
    if not parsed:
        logging.getLogger(__name__).warning(
            "math-verify cannot parse the ground truth %r: its responses score 0", ground_truth
        )
    return parsed


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))
