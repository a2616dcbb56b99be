"""Weights through memory of the GPU that trainer and engine share (colocated).

Never leaves the device: the trainer packs a bucket into a buffer of its own, the engine, which has
the same buffer mapped through CUDA's inter-process handles, copies the tensors out of it.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from alp_megatron.errors import RunError
from alp_megatron.weights.transport.buckets import (
    DEFAULT_CAPACITY,
    Memory,
    Receivers,
    pack,
    to_json,
)


class CudaIpc:
    """A Transport. Its engines use the GPU of the trainer's rank 0."""

    collective = False

    def __init__(self, capacity: int = DEFAULT_CAPACITY):
        self._memory = torch.empty(capacity, dtype=torch.uint8, device="cuda")

    def connect(self, receivers: Receivers) -> None:
        # A handle of its own for each: an engine that closes its mapping gives its handle back.
        receivers.connect([export_memory(self._memory) for _ in range(receivers.count)])

    def send(
        self, tensors: Iterable[tuple[str, Tensor]], version: int, receivers: Receivers
    ) -> None:
        for bucket in pack(tensors, Memory(self._memory)):
            torch.cuda.current_stream().synchronize()  # the engine's streams do not wait for it
            receivers.receive({"version": version, "pieces": to_json(bucket)})

    def close(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)


def export_memory(memory: Tensor) -> dict[str, Any]:
    """What another process needs to map a whole storage of this one's GPU; see `map_memory`.

    The fields of torch.multiprocessing's own handles, with bytes as base64.
    """
    device, *handle = memory.untyped_storage()._share_cuda_()
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    fields = [b64encode(f).decode() if isinstance(f, bytes) else f for f in handle]
    return {"gpu": uuid, "handle": fields}


def map_memory(gpu: str, handle: list[Any], device: torch.device) -> Tensor:
    """Raises RunError if `device` is not the GPU whose memory was exported."""
    own = str(torch.cuda.get_device_properties(device).uuid)
    if own != gpu:
        raise RunError(
            f"weight update: rollout.transport=cuda_ipc needs trainer and engine on one GPU, but "
            f"the trainer's is {gpu} and the engine's {own}; use shared_memory or nccl"
        )
    fields = [b64decode(f) if isinstance(f, str) else f for f in handle]
    storage = torch.UntypedStorage._new_shared_cuda(device.index, *fields)
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
