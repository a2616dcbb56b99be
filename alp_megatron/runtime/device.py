"""The one place that chooses device and communication backend."""

import torch

from alp_megatron.errors import UserError


def device_type(wanted: str) -> str:
    """'cuda' or 'cpu' for `runtime.device`. Raises UserError if CUDA is asked for and absent."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "runtime.device=cuda, but torch sees no CUDA device: use runtime.device=cpu, or "
            "install the GPU stack with `make train DEVICE=cuda` on a machine that has one."
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
    """The device of this process."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    return torch.device("cpu")
