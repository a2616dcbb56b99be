"""What moves weights from the trainer's rank 0 to running engines, in buckets of bounded size."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

# What moves weights from the trainer's rank 0 to one or several running engines.
#
# A transport is the trainer's end; `rollout/vllm/receivers.py` has the engines' ends, registered
# with vLLM's weight-transfer API. The API carries the few bytes that say what comes next, over
# HTTP; the transport carries the tensors, a bucket at a time. Whoever drives the update pauses
# generation before it, and drops the prefix caches and sets the engines' version after it.


class Receivers(Protocol):
    """The engines of an update. Both calls return when every engine has done its part."""

    @property
    def count(self) -> int: ...

    def connect(self, infos: list[dict[str, Any]]) -> None:
        """vLLM's `init_weight_transfer_engine`, with one `info` for each engine."""

    def receive(self, info: dict[str, Any]) -> None:
        """vLLM's `update_weights`: load what the transport has made ready, or is sending."""


class Transport(Protocol):
    """
    Attributes:
        collective: the engines receive together, so one that is lost stalls the others.
    """

    collective: bool

    def connect(self, receivers: Receivers) -> None:
        """Makes the engines ready to receive. Called again when they are not the same ones."""

    def send(
        self, tensors: Iterable[tuple[str, Tensor]], version: int, receivers: Receivers
    ) -> None:
        """Streams (name, tensor) to all of them in bounded memory; returns when all have loaded."""

    def close(self) -> None:
        """Leaves nothing behind; may be called again."""


# A stream of tensors as buckets of a bounded size.
#
# The writer packs tensors into a buffer until it is full: that is a bucket. The bucket's list of
# pieces travels over any channel, the reader copies the tensors out, and the buffer is free for the
# next bucket. A tensor larger than the buffer travels in pieces.

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


def to_json(bucket: Bucket) -> list[list[Any]]:
    return [
        [piece.name, str(piece.dtype).removeprefix("torch."), list(piece.shape)]
        + [piece.start, piece.count, piece.offset]
        for piece in bucket
    ]


def from_json(pieces: list[list[Any]]) -> Bucket:
    return [
        Piece(name, getattr(torch, dtype), tuple(shape), *numbers)
        for name, dtype, shape, *numbers in pieces
    ]


class Buffer(Protocol):
    """`capacity` bytes in which pieces lie."""

    capacity: int

    def view(self, piece: Piece) -> Tensor:
        """The piece's elements where they lie, `[count]`."""


class Memory:
    """A Buffer over a tensor of bytes, on any device."""

    def __init__(self, memory: Tensor):
        self.capacity = memory.numel()
        self._bytes = memory

    def view(self, piece: Piece) -> Tensor:
        size = piece.count * piece.dtype.itemsize
        return self._bytes[piece.offset : piece.offset + size].view(piece.dtype)


def pack(tensors: Iterable[tuple[str, Tensor]], buffer: Buffer) -> Iterator[Bucket]:
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


class Assembler:
    """Puts tensors together again from bucket after bucket."""

    def __init__(self):
        self._flat: Tensor | None = None  # of the tensor whose last piece is to come

    def take(self, bucket: Bucket, view: Callable[[Piece], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The tensors that the bucket completes, where `view` has them, in memory of their own.

        The copy is needed: vLLM keeps the tensors of a layer until it has all of them, when the
        buffer may hold another bucket already.
        """
        for piece in bucket:
            elements = view(piece)
            if piece.start == 0:
                numel = torch.Size(piece.shape).numel()
                self._flat = torch.empty(numel, dtype=piece.dtype, device=elements.device)
            self._flat[piece.start : piece.start + piece.count].copy_(elements)
            if piece.last:
                yield piece.name, self._flat.view(piece.shape)


def unpack(buckets: Iterable[Bucket], buffer: Buffer) -> Iterator[tuple[str, Tensor]]:
    """The tensors that `pack` put into the buffer."""
    assembler = Assembler()
    for bucket in buckets:
        yield from assembler.take(bucket, buffer.view)
