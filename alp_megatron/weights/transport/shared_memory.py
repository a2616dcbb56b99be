"""Weights through memory that trainer and engine share: the same host, the CPU's memory.

The memory is an anonymous file (memfd): it has no name, so it cannot outlive the last process
that has it open, however that process ended.
"""

import mmap
import os
from collections.abc import Iterable

import torch
from torch import Tensor

from alp_megatron.weights.transport.buckets import DEFAULT_CAPACITY, Piece, Receivers, pack, to_json


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
        """The memory behind `/proc/PID/fd/N` of the process that made it. Raises OSError."""
        return cls(os.open(path, os.O_RDWR | os.O_CLOEXEC), capacity)

    def view(self, piece: Piece) -> Tensor:
        """The piece's elements where they lie, `[count]`."""
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
