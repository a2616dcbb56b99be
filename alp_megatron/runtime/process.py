"""The life of one training process, from joining the run to its exit code."""

import os
import sys
import warnings

from alp_megatron.config.schema import Config
from alp_megatron.errors import RunError, UserError
from alp_megatron.runtime.cpu_megatron import enable_cpu_megatron
from alp_megatron.runtime.launcher import PARENT_VARIABLE
from alp_megatron.runtime.lifetime import die_with_parent


def run_process(config: Config, job, *arguments) -> int:
    """Join the run, do `job(config, rank, *arguments)` and leave. Returns the exit code.

    `job` is called in every process of the run; it must not be imported before this function
    runs from a module that imports megatron (the CPU patches come first), so it imports inside.

    A user's mistake (2) or a failure with a known cause (1) is one sentence from the rank that
    met it; anything else keeps its traceback.
    """
    if PARENT_VARIABLE in os.environ:
        die_with_parent(int(os.environ[PARENT_VARIABLE]))
    # Megatron's fall-backs without TE and apex, and what its use of torch has torch say.
    warnings.filterwarnings("ignore", module="megatron")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")
    enable_cpu_megatron()
    from alp_megatron.runtime.process_groups import join, leave

    try:
        rank = join(config)
        job(config, rank, *arguments)
        leave()
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # The others wait in a collective call; leaving at once has the launcher end them.
        os._exit(2 if isinstance(error, UserError) else 1)
    return 0
