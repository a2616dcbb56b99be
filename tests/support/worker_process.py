"""What a process of the pool is: everything imported, ready for jobs."""

import gc
import importlib
import os
import traceback
import warnings

os.environ["OMP_NUM_THREADS"] = "1"
warnings.simplefilter("ignore")

from alp_megatron.runtime.cpu_megatron import enable_cpu_megatron  # noqa: E402

enable_cpu_megatron()

from alp_megatron.runtime.mesh import join, leave  # noqa: E402
from tests.support import jobs  # noqa: E402, F401

gc.collect()
gc.freeze()  # what the imports made need not be walked again


def serve(pipe) -> None:
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
