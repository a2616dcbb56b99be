"""Milliseconds on the GPU."""

from collections.abc import Callable
from statistics import median

import torch


def milliseconds(work: Callable[[], object], rounds: int = 20, calls: int = 10) -> float:
    """Median over the rounds of one call's time, by CUDA events around some calls."""
    for _ in range(3):
        work()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return median(times)
