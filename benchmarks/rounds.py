"""Runs contenders in turn: on a noisy machine only neighbours in time can be compared."""

import time
from collections.abc import Callable


def seconds_by_rounds(
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    meet: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Wall-clock seconds of each contender in each round.

    Every other round runs them in reverse, so that none always follows the same one. `meet`
    (a barrier) is called before each start: other ranks' lateness is not the contender's.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-warm_up, rounds):
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            meet()
            started = time.perf_counter()
            contenders[name]()
            if number >= 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds
