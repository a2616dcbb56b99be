"""A pool of real training processes that play one layout after another.

Importing torch and Megatron takes seconds, so the processes are started once a session; for each
job the first `world_size` of them join gloo and Megatron's groups, run it, and leave.
"""

import gc
import importlib
import multiprocessing
import os
import socket
import traceback

TIMEOUT_SECONDS = 180


class Workers:
    def __init__(self, count: int = 4):
        self._count = count
        self._start()

    def _start(self) -> None:
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as runtime.process has it; inherited
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for _ in range(self._count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,))
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, job: str, config, world_size: int, **arguments) -> list:
        """`job` is "module:function"; called as f(config, rank, **arguments) in every process.

        Returns each rank's result. An exception in one is raised here with its traceback.
        """
        port = _free_port()
        for rank in range(world_size):
            self._pipes[rank].send((job, config, rank, world_size, port, arguments))
        results, failures = [], []
        for rank in range(world_size):
            if not self._pipes[rank].poll(1 if failures else TIMEOUT_SECONDS):
                failures.append(f"rank {rank} did not answer")
                continue
            ok, value = self._pipes[rank].recv()
            (results if ok else failures).append(value)
        if failures:
            self.close()  # the others may wait for ever in a collective call
            self._start()
            raise AssertionError("\n".join(failures))
        return results

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _serve(pipe) -> None:
    from alp_megatron.runtime.launcher import die_with_parent

    die_with_parent(os.getppid())
    os.environ["OMP_NUM_THREADS"] = "1"
    import warnings

    warnings.simplefilter("ignore")
    from alp_megatron.runtime.cpu_megatron import enable_cpu_megatron

    enable_cpu_megatron()
    from alp_megatron.runtime.mesh import join, leave

    gc.collect()
    gc.freeze()  # what the imports made need not be walked again
    while True:
        job, config, rank, world_size, port, arguments = pipe.recv()
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world_size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        try:
            place = join(config)
            module, function = job.split(":")
            result = getattr(importlib.import_module(module), function)(config, place, **arguments)
            leave()
            # A model refers to itself and to its groups, whose threads would pile up.
            gc.collect()
            pipe.send((True, result))
        except Exception:
            pipe.send((False, f"rank {rank}:\n{traceback.format_exc()}"))
