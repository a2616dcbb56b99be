"""Megatron's checkpoint writer without processes of its own."""

import queue
from concurrent.futures import ThreadPoolExecutor

from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync


def write_in_this_process() -> None:
    """Patch Megatron: a save needs neither writer processes nor a manager for them.

    Both outlive a killed trainer, the manager takes seconds to start, and forking a process
    that has threads may hang.
    """
    FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(_write)
    filesystem_async._results_queue = queue.Queue()


def _write(transforms, use_msc, rank, buckets, results: queue.Queue) -> None:
    """`write_preloaded_data_multiproc` with threads where Megatron forks processes."""
    done, counter = queue.Queue(), queue.Queue()
    for _ in buckets:
        counter.put(None)
    write = FileSystemWriterAsync.write_preloaded_data
    with ThreadPoolExecutor(max(len(buckets), 1)) as pool:
        for index, bucket in enumerate(buckets):
            pool.submit(write, transforms, index, bucket, done, counter, True)
    written = dict(done.get() for _ in buckets)
    for result in written.values():
        if isinstance(result, Exception):
            raise result
    results.put(written)
