"""Deals a list of tasks to processes, and shows how far they are."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import torch

from alp_megatron.errors import RunError
from alp_megatron.runtime.launcher import die_with_parent
from alp_megatron.runtime.progress import ProgressLine


def run_tasks(task: Callable, items: Iterable, workers: int, progress: "ByteProgress") -> None:
    """Does `task(item)` of every item, over `workers` processes (in this one if it is 1).

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


class ByteProgress:
    """Says on one line how many of the bytes are done, how fast and how long the rest takes."""

    def __init__(self, what: str, total: int):
        self._what, self._total, self._done = what, max(total, 1), 0
        self._line = ProgressLine(on_terminal=0.2, in_file=10.0)
        self._started = time.monotonic()

    def add(self, nbytes: int) -> None:
        """Counts what was done and shows it, if it is time to."""
        self._done += nbytes
        if self._line.is_due():
            speed = self._done / (time.monotonic() - self._started)
            left = (self._total - self._done) / max(speed, 1)
            self._line.show(
                f"{self._what}: {self._done / self._total:4.0%} of {self._total / 1e9:.2f} GB, "
                f"{speed / 1e6:.0f} MB/s, {left:.0f} s left"
            )

    def finish(self) -> None:
        """Says what it took."""
        seconds = time.monotonic() - self._started
        self._line.say(
            f"{self._what}: {self._done / 1e9:.2f} GB in {seconds:.1f} s "
            f"({self._done / 1e6 / max(seconds, 1e-9):.0f} MB/s)"
        )
