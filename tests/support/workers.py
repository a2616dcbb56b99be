"""A pool of real training processes that play one layout after another.

Importing torch and Megatron takes seconds, so it is done once a session, and the processes are
forked from that; for each job the first `world_size` of them join gloo and Megatron's groups, run
it, and leave.
"""

import multiprocessing
import os
import socket
from pathlib import Path

TIMEOUT_SECONDS = 180


class Workers:
    def __init__(self, count: int = 4):
        self._count = count
        self._start()

    def _start(self) -> None:
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as runtime.process has it; inherited
        # A process that has imported CUDA's libraries must not be forked.
        cuda = Path("/dev/nvidiactl").exists()
        context = multiprocessing.get_context("spawn" if cuda else "forkserver")
        context.set_forkserver_preload(["tests.support.worker_process"])
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
    from tests.support import worker_process

    worker_process.serve(pipe)
