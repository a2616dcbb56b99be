"""Starts the training processes with torchrun's agent, and lets no process outlive its parent."""

import ctypes
import logging
import os
import signal
import sys
import uuid

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Has Linux kill this process when the thread of `parent` that started it ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)


PARENT_VARIABLE = "ALP_MEGATRON_PARENT_PID"
LOST_PEER = 3  # exit code of a process that ended only because another one was gone


def under_launcher() -> bool:
    """Says whether torchrun, or srun with its variables, started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(module: str, arguments: list[str], world_size: int) -> int:
    """Runs `python -m module arguments` in `world_size` processes on this machine.

    When one process ends badly the others are ended. Returns the exit code: 0, 2 if a process
    ended with 2 (a user's mistake, which it has already explained), 128 + the signal that ended
    the run, else 1. Raises KeyboardInterrupt at Ctrl-C.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The agent would explain at length what the failed process has already said in a sentence.
    for part in ("", ".agent.server.api"):  # the second has a level of its own
        logging.getLogger(f"torch.distributed.elastic{part}").setLevel(logging.CRITICAL)
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
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # no directory left in /tmp
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        return _explain(error)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        print(f"error: ended by {_name(error.sigval)}.", file=sys.stderr)
        return 128 + error.sigval
    return 0


def _explain(error) -> int:
    codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    if killed:
        rank, number = min(killed.items())
        print(f"error: training process {rank} was ended by {_name(number)}.", file=sys.stderr)
    elif set(codes.values()) == {LOST_PEER}:
        print("error: the training processes lost their connection.", file=sys.stderr)
    return 2 if 2 in codes.values() else 1


def _name(number: int) -> str:
    return f"signal {int(number)} ({signal.Signals(number).name})"
