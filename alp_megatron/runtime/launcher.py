"""Starts the training processes with torchrun's agent, unless a launcher already did."""

import logging
import os
import signal
import sys
import uuid

PARENT_VARIABLE = "ALP_MEGATRON_PARENT_PID"


def under_launcher() -> bool:
    """torchrun, or srun with torchrun's variables, started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(module: str, arguments: list[str], world_size: int) -> int:
    """Run `python -m module arguments` in `world_size` processes on this machine.

    When one process ends badly the others are ended. Returns the exit code: 0, 2 if a process
    ended with 2 (a user's mistake, which it has already explained), else 1.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The agent would explain at length what the failed process has already said in a sentence.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        return _explain(error)
    return 0


def _explain(error) -> int:
    codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    for rank, code in codes.items():
        if code < 0 and -code != signal.SIGTERM:
            name = signal.Signals(-code).name
            print(
                f"error: training process {rank} was ended by signal {-code} ({name}); "
                "continue the run with --resume.",
                file=sys.stderr,
            )
    return 2 if 2 in codes.values() else 1
