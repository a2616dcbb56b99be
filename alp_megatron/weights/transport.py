"""Tensors from one process to another through a fixed amount of shared memory.

The writer packs tensors into the memory until it is full: that is a bucket. The bucket's list of
pieces travels over any channel, the reader copies the tensors out, and the memory is free for the
next bucket. A tensor larger than the memory travels in pieces.

The memory is an anonymous file (memfd): it has no name, so it cannot outlive the last process
that has it open, however that process ended.
"""

import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_CAPACITY = 64 * 2**20
_ALIGNMENT = 64  # bytes; a cache line


@dataclass(frozen=True)
class Piece:
    """`count` elements of a tensor's flat form from element `start` on, at `offset` (bytes)."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    count: int
    offset: int

    @property
    def last(self) -> bool:
        return self.start + self.count == torch.Size(self.shape).numel()


Bucket = list[Piece]


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


def pack(tensors: Iterable[tuple[str, Tensor]], buffer: SharedBuffer) -> Iterator[Bucket]:
    """Copies the tensors into the buffer, a bucket at a time, from any device.

    A bucket is valid until the generator is resumed: the reader must have copied it out by then.
    A tensor is split only if it is larger than the whole buffer.
    """
    bucket: Bucket = []
    used = 0
    for name, tensor in tensors:
        flat = tensor.detach().reshape(-1)
        size = flat.dtype.itemsize
        assert flat.numel() > 0, f"{name} has no elements"
        assert size <= buffer.capacity, f"the buffer holds no element of {name}"
        start = 0
        while start < flat.numel():
            if bucket and (flat.numel() - start) * size > buffer.capacity - used:
                yield bucket
                bucket, used = [], 0
            count = min(flat.numel() - start, (buffer.capacity - used) // size)
            piece = Piece(name, flat.dtype, tuple(tensor.shape), start, count, offset=used)
            buffer.view(piece).copy_(flat[start : start + count])
            bucket.append(piece)
            used += -(-count * size // _ALIGNMENT) * _ALIGNMENT
            start += count
    if bucket:
        yield bucket


def unpack(buckets: Iterable[Bucket], buffer: SharedBuffer) -> Iterator[tuple[str, Tensor]]:
    """The tensors on the CPU, each whole and in memory of its own.

    The copy is needed: vLLM keeps the tensors of a layer until it has all of them, when the
    buffer may hold another bucket already.
    """
    for bucket in buckets:
        for piece in bucket:
            if piece.start == 0:
                flat = torch.empty(torch.Size(piece.shape).numel(), dtype=piece.dtype)
            flat[piece.start : piece.start + piece.count].copy_(buffer.view(piece))
            if piece.last:
                yield piece.name, flat.view(piece.shape)
