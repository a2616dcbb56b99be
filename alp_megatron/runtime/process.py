"""The life of one training process, from joining the run to its exit code."""

import logging
import os
import signal
import sys
import warnings

from alp_megatron.config.schema import Config
from alp_megatron.errors import RunError, UserError
from alp_megatron.files import is_lack_of_space
from alp_megatron.runtime.cpu_megatron import enable_cpu_megatron
from alp_megatron.runtime.launcher import LOST_PEER, PARENT_VARIABLE, die_with_parent

_TOO_LOUD = (
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.distributed.distributed_data_parallel",
    "megatron.core.dist_checkpointing.strategies.common",
    "torch.utils.cpp_extension",
)


def quieten_libraries() -> None:
    """Keeps from the console what Megatron and torch say at each start, and nobody can act on."""
    # Megatron's fall-backs without TE and apex, and what its use of torch has torch say.
    warnings.filterwarnings("ignore", module="megatron")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", module="torch.distributed.checkpoint")
    warnings.filterwarnings("ignore", message="Please use DTensor instead")
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")  # norms
    # Megatron-Core 0.19 calls its GPTModel deprecated at each start and the checkpoints of 0.16 at
    # each load, and computes itself a layout that it would rather be given; torch misses a GPU on
    # machines that have CUDA's compiler.
    for name in _TOO_LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)


def run_process(config: Config, job, *arguments) -> int:
    """Joins the run, does `job(config, rank, *arguments)` and leaves. Returns the exit code.

    `job` is called in every process of the run; it must not be imported before this function
    runs from a module that imports megatron (the CPU patches come first), so it imports inside.

    A user's mistake (2) or a failure with a known cause (1) is one sentence from the rank that
    met it, and a process that misses another one is silent; anything else keeps its traceback.
    """
    # Ctrl-C reaches every process of the console: this one ends without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if PARENT_VARIABLE in os.environ:
        die_with_parent(int(os.environ[PARENT_VARIABLE]))
    # torch puts large tensors on pages of 2 MiB: fresh ones of 4 KiB cost more than a copy of them.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    quieten_libraries()
    enable_cpu_megatron()
    from alp_megatron.runtime.mesh import join, leave

    try:
        rank = join(config)
        job(config, rank, *arguments)
        leave()
    except UserError as error:
        _end(2, str(error))
    except RunError as error:
        _end(1, str(error))
    except OSError as error:
        if not is_lack_of_space(error):
            raise
        _end(2, f"{config.run_dir}: no space is left; free some and continue with --resume.")
    except RuntimeError as error:
        if not _lost_peer(error):
            raise
        os._exit(LOST_PEER)  # whoever ended first says why, or the launcher does
    return 0


def _end(code: int, sentence: str) -> None:
    """Leaves at once: the others wait in a collective call, and the launcher then ends them."""
    if _first_to_fail():
        print(f"error: {sentence}", file=sys.stderr, flush=True)
    os._exit(code)


def _first_to_fail() -> bool:
    """Returns False if another process has said already what is wrong: all ranks read the same
    files.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return True
    return dist.distributed_c10d._get_default_store().add("alp_megatron/failures", 1) == 1


def _lost_peer(error: RuntimeError) -> bool:
    """Returns whether a collective call failed for want of another process.

    gloo has no exception of its own.
    """
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo/transport" in str(error)
