"""Weights through memory that trainer and engine share: the host's, or a GPU's (CUDA IPC).

The trainer packs a bucket into a buffer of its own; the engines, which have the same buffer mapped,
copy the tensors out of it. The host's memory is an anonymous file (memfd): it has no name, so it
cannot outlive the last process that has it open, however that process ended. A GPU's is mapped
through CUDA's inter-process handles and never leaves the device.
"""

import mmap
import os
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from alp_megatron.errors import RunError
from alp_megatron.weights.transport.buckets import (
    DEFAULT_CAPACITY,
    Memory,
    Piece,
    Receivers,
    pack,
    to_json,
)


class SharedBuffer:
    """`capacity` bytes of memory shared by whoever holds `fd`."""

    def __init__(self, fd: int, capacity: int):
        self.fd = fd
        self.capacity = capacity
        self._map: Tensor | None = torch.frombuffer(mmap.mmap(fd, capacity), dtype=torch.uint8)

    @classmethod
    def create(cls, capacity: int = DEFAULT_CAPACITY) -> "SharedBuffer":
        fd = os.memfd_create("alp-weights", os.MFD_CLOEXEC)
        os.ftruncate(fd, capacity)
        return cls(fd, capacity)

    @classmethod
    def open(cls, path: str, capacity: int) -> "SharedBuffer":
        """Opens the memory behind `/proc/PID/fd/N` of the process that made it. Raises OSError."""
        return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC), capacity)

    def view(self, piece: Piece) -> Tensor:
        """Returns the piece's elements where they lie, `[count]`."""
        assert self._map is not None, "the buffer is closed"
        size = piece.count * piece.dtype.itemsize
        return self._map[piece.offset : piece.offset + size].view(piece.dtype)

    def close(self) -> None:
        """Drops the mapping (it is unmapped once no view is left) and closes the descriptor."""
        if self._map is not None:
            self._map = None
            os.close(self.fd)


class SharedMemory:
    """A Transport. Engines open the memory as a descriptor of this process: they must be the same
    user's, and see this process under the same id.
    """

    collective = False

    def __init__(self, capacity: int = DEFAULT_CAPACITY):
        self._buffer = SharedBuffer.create(capacity)

    def connect(self, receivers: Receivers) -> None:
        path = f"/proc/{os.getpid()}/fd/{self._buffer.fd}"
        receivers.connect([{"path": path, "capacity": self._buffer.capacity}] * receivers.count)

    def send(
        self, tensors: Iterable[tuple[str, Tensor]], version: int, receivers: Receivers
    ) -> None:
        for bucket in pack(tensors, self._buffer):
            receivers.receive({"version": version, "pieces": to_json(bucket)})

    def close(self) -> None:
        self._buffer.close()


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
    """Returns what another process needs to map a whole storage of this one's GPU; see
    `map_memory`.

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
