"""How many runs this machine holds at once."""

import os
from collections.abc import Iterable

from alp_megatron.config.layout import world_size
from alp_megatron.config.machine import nvidia_gpus
from alp_megatron.config.schema import Config


def cores_of(config: Config) -> int:
    """Cores that a run keeps busy: its training processes' threads and vLLM's."""
    return world_size(config) * config.runtime.threads_per_rank + config.rollout.cpu_threads


def runs_at_once(configs: Iterable[Config]) -> int:
    """As many as there are cores for the largest of them, at least one.

    With a GPU one: every run takes the first GPUs that it sees.
    """
    configs = list(configs)
    if nvidia_gpus() and any(config.runtime.device != "cpu" for config in configs):
        return 1
    return max(1, len(os.sched_getaffinity(0)) // max(map(cores_of, configs)))
