"""Deals a list of tasks to processes, and shows how far they are."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

from alp_megatron.errors import RunError
from alp_megatron.runtime.lifetime import die_with_parent

T = TypeVar("T")


def batches[T](items: Iterable[T], size_of: Callable[[T], int], limit: int) -> list[list[T]]:
    """The items in order, as many together as `limit` holds, and at least one."""
    found: list[list[T]] = []
    size = 0
    for item in items:
        if not found or size + size_of(item) > limit:
            found.append([])
            size = 0
        found[-1].append(item)
        size += size_of(item)
    return found


def run_tasks(task: Callable, items: Iterable, workers: int, progress: "Progress") -> None:
    """`task(item)` of every item, over `workers` processes (in this one if it is 1).

    `task` returns how many bytes it did. The first exception ends the others' work and is raised.
    """
    items = list(items)
    if workers == 1 or len(items) < 2:
        for item in items:
            progress.add(task(item))
        return
    # Forked, so that torch is imported once; this process has started no threads of torch's.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(
        min(workers, len(items)), context, initializer=_start, initargs=(os.getpid(),)
    )
    try:
        for done in as_completed([pool.submit(task, item) for item in items]):
            progress.add(done.result())
    except BrokenProcessPool:
        raise RunError(
            "a converting process was ended from outside (was memory short?): start again, with "
            "fewer --workers."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start(parent: int) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    torch.set_num_threads(1)


class Progress:
    """One line on stdout, rewritten on a terminal and written every few seconds elsewhere."""

    SECONDS = {True: 0.2, False: 10.0}

    def __init__(self, what: str, total: int):
        self._what, self._total, self._done = what, max(total, 1), 0
        self._started = self._shown = time.monotonic()
        self._terminal = sys.stdout.isatty()

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        now = time.monotonic()
        if now - self._shown < self.SECONDS[self._terminal]:
            return
        self._shown = now
        speed = self._done / (now - self._started)
        left = (self._total - self._done) / max(speed, 1)
        line = (
            f"{self._what}: {self._done / self._total:4.0%} of {self._total / 1e9:.2f} GB, "
            f"{speed / 1e6:.0f} MB/s, {left:.0f} s left"
        )
        print(f"\r{line}  " if self._terminal else line, end="" if self._terminal else "\n")
        sys.stdout.flush()

    def finish(self) -> None:
        if self._terminal:
            print("\r\033[K", end="")
        seconds = time.monotonic() - self._started
        print(
            f"{self._what}: {self._done / 1e9:.2f} GB in {seconds:.1f} s "
            f"({self._done / 1e6 / max(seconds, 1e-9):.0f} MB/s)",
            flush=True,
        )
