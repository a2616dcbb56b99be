"""This process as the only rank of a run."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from alp_megatron.config.schema import Config
from alp_megatron.runtime.cpu_megatron import enable_cpu_megatron
from alp_megatron.runtime.process import quieten_libraries


@contextmanager
def one_rank(config: Config) -> Iterator:
    """Joins torch.distributed and Megatron's groups for as long as the block lasts; gives the
    `Rank`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
    quieten_libraries()
    enable_cpu_megatron()
    from alp_megatron.runtime.mesh import join, leave

    rank = join(config)
    try:
        yield rank
    finally:
        leave()
