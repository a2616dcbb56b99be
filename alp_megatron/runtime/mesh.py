"""This process's place in the run: device, back-end, Megatron's parallel groups."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.runtime.machine import install_command


def device_type(wanted: str) -> str:
    """Returns 'cuda' or 'cpu' for `runtime.device`.

    Raises UserError if CUDA is asked for and absent.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        install = install_command("make train DEVICE=cuda", "pip install --force-reinstall torch")
        raise UserError(
            "runtime.device=cuda, but torch sees no CUDA device: use runtime.device=cpu, or "
            f"install the GPU stack with `{install}` on a machine that has one."
        )
    if wanted == "cpu" and torch.cuda.is_available():
        raise UserError(
            "runtime.device=cpu on a machine with CUDA: hide the device with "
            "CUDA_VISIBLE_DEVICES= (empty), because Megatron-Core takes CUDA where it sees it."
        )
    return "cuda" if torch.cuda.is_available() else "cpu"


def backend(device: str) -> str:
    return "nccl" if device == "cuda" else "gloo"


def current_device(local_rank: int) -> torch.device:
    """Returns the device of this process."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


@dataclass(frozen=True)
class Rank:
    """Says which place this process has.

    The launcher (torchrun, or srun with torchrun) set the environment.
    """

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def join(config: Config) -> Rank:
    """Initialises torch.distributed and Megatron's groups for the layout in `config.model`."""
    from megatron.core import parallel_state, tensor_parallel

    kind = device_type(config.runtime.device)
    local_rank = int(os.environ["LOCAL_RANK"])
    device = current_device(local_rank)
    if kind == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(config.runtime.threads_per_rank)
    timeout = timedelta(minutes=config.runtime.distributed_timeout_minutes)
    dist.init_process_group(backend(kind), timeout=timeout)
    model = config.model
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=model.tensor_model_parallel_size,
        pipeline_model_parallel_size=model.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=model.virtual_pipeline_model_parallel_size,
        expert_model_parallel_size=model.expert_model_parallel_size,
        expert_tensor_parallel_size=1,  # an expert is never split
        create_gloo_process_groups=kind == "cuda",
        distributed_timeout_minutes=config.runtime.distributed_timeout_minutes,
    )
    # Dropout is 0 and weights are loaded: Megatron's tracker only has to exist.
    tensor_parallel.model_parallel_cuda_manual_seed(config.seed % 2**31)
    return Rank(dist.get_rank(), dist.get_world_size(), local_rank, device)


def leave() -> None:
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def from_first_rank(value):
    """Returns rank 0's value (of any picklable kind) on every rank. Collective."""
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def from_every_rank(value, group: dist.ProcessGroup | None = None) -> list:
    """Returns the values of all ranks of the group (of any picklable kind), by rank; None: of the
    whole run. Collective.
    """
    values = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def to_first_rank(value) -> list | None:
    """The values of all ranks of the run (of any picklable kind), by rank, on rank 0; None on the
    others. Collective."""
    values = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, values, dst=0)
    return values
