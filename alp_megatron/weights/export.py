"""The export stream: every weight under its Hugging Face name, gathered over TP, PP and EP."""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.fp8_utils import is_float8tensor
from torch import Tensor

from alp_megatron.runtime.mesh import from_every_rank
from alp_megatron.weights.mapping import Rule, rules_of_chunk, split, unshard
from alp_megatron.weights.transport.buckets import bounded

# Which rank holds which part of which tensor, and the buckets in which the parts travel.
#
# Pure functions: what every rank holds goes in, the order of the whole stream comes out.


@dataclass(frozen=True)
class Part:
    """Describes what one rank holds of a Megatron parameter.

    Attributes:
        rule: the parameter's correspondence to Hugging Face tensors.
        index: its place among the tensor-parallel parts; 0 where the rank holds all of it.
        rank: global rank of the holder.
        chunk, name: where the holder finds it: its model chunk, the name in the chunk.
        shape: of the part.
    """

    rule: Rule
    index: int
    rank: int
    chunk: int
    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Entry:
    """One parameter of the whole model: the parts that make it, in tensor-parallel order."""

    rule: Rule
    parts: tuple[Part, ...]

    @property
    def numel(self) -> int:
        return sum(part.numel for part in self.parts)


def entries_of(held: list[Part]) -> list[Entry]:
    """Returns the parameters in the stream's order: embedding, layers by number, norm, head.

    Of several holders (data-parallel replicas, the two ends of a pipeline for a tied embedding,
    all ranks for a norm) the lowest rank gives its part.
    """
    chosen: dict[tuple[str, ...], dict[int, Part]] = {}
    for part in sorted(held, key=lambda part: part.rank):
        chosen.setdefault(part.rule.hf_names, {}).setdefault(part.index, part)
    entries = []
    for parts in chosen.values():
        assert sorted(parts) == list(range(len(parts))), "a tensor-parallel part has no holder"
        entries.append(Entry(parts[0].rule, tuple(parts[i] for i in range(len(parts)))))
    return sorted(entries, key=_stream_order)


_OUTSIDE = {"model.embed_tokens.weight": -1, "model.norm.weight": 2**30, "lm_head.weight": 2**31}


def _stream_order(entry: Entry) -> tuple:
    name = entry.rule.hf_names[0]
    layer = _OUTSIDE[name] if name in _OUTSIDE else int(name.split(".")[2])
    # Numbers by value, so that expert 10 follows expert 9.
    return layer, [(int(s), "") if s.isdigit() else (-1, s) for s in re.split(r"(\d+)", name)]


# The export stream: every weight under its Hugging Face name, gathered over TP, PP and EP.
#
# The same stream serves a checkpoint on disk and a live sync into the rollout engine.

DEFAULT_BUCKET_BYTES = 64 * 2**20


class WeightExport:
    """Knows which rank holds which part of every weight; each `stream` follows it. Made once.

    Args:
        chunks: this rank's PolicyModel chunks (all ranks of the run make it together).
        bucket_bytes: the parts travel to rank 0 in buckets of at most this size, or of one
            tensor where that is larger. A rank holds two of them, and no copy of the model.
    """

    def __init__(self, chunks: list, model_type: str, bucket_bytes: int = DEFAULT_BUCKET_BYTES):
        self._config = chunks[0].config
        self._bucket_bytes = bucket_bytes
        self._parameters = [dict(chunk.named_parameters()) for chunk in chunks]
        self._device = next(chunks[0].parameters()).device
        # Two, used in turn: one travels while the other is filled or read.
        self._spaces = [torch.empty(0, dtype=torch.uint8, device=self._device) for _ in range(2)]
        held = from_every_rank(list(self._held(chunks, model_type)))
        self.entries = entries_of([part for of_rank in held for part in of_rank])

    def _held(self, chunks: list, model_type: str) -> Iterator[Part]:
        rank, tp_rank = dist.get_rank(), parallel_state.get_tensor_model_parallel_rank()
        for index, chunk in enumerate(chunks):
            for name, rule in rules_of_chunk(chunk, model_type).items():
                whole = rule.layout == "replicated" or rule.expert
                shape = tuple(self._parameters[index][name].shape)
                yield Part(rule, 0 if whole else tp_rank, rank, index, name, shape)

    @torch.no_grad()
    def stream(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yields (name, whole tensor in `dtype`) on rank 0. All ranks of the run must call it.

        The other ranks get an empty stream that they must run through. Parts are cast before they
        travel, and the next bucket travels while rank 0 works on this one. A tensor is valid
        until the next one is asked for.
        """
        capacity = self._bucket_bytes // dtype.itemsize
        buckets = list(bounded(self.entries, lambda entry: entry.numel, capacity))
        if dist.get_rank() != 0:
            self._send(buckets, dtype)
            return
        following = self._receive(buckets[0], 0, dtype)
        for number, bucket in enumerate(buckets):
            arriving = following
            if number + 1 < len(buckets):
                following = self._receive(buckets[number + 1], (number + 1) % 2, dtype)
            for work in arriving.works:
                work.wait()
            for entry in bucket:
                yield from self._tensors(entry, arriving.parts, dtype)

    def _send(self, buckets: list[list[Entry]], dtype: torch.dtype) -> None:
        """Sends this rank's parts of each bucket, one message a bucket."""
        on_their_way: deque = deque()
        for bucket in buckets:
            mine = [p for entry in bucket for p in entry.parts if p.rank == dist.get_rank()]
            if not mine:
                continue
            if len(on_their_way) == 2:
                on_their_way.popleft().wait()
            self._spaces.reverse()
            message = self._space(0, mine, dtype)
            for part, place in zip(mine, _places(mine, message), strict=True):
                place.copy_(_values(self._parameters[part.chunk][part.name]))
            on_their_way.append(dist.isend(message, 0))
        for work in on_their_way:
            work.wait()

    def _receive(self, bucket: list[Entry], space: int, dtype: torch.dtype) -> "_Arriving":
        """Starts receiving what other ranks hold of a bucket."""
        theirs = [p for entry in bucket for p in entry.parts if p.rank != 0]
        theirs.sort(key=lambda part: part.rank)  # stable: in a rank's own order
        whole = self._space(space, theirs, dtype)
        parts, works, start = {}, [], 0
        for rank in sorted({part.rank for part in theirs}):
            of_rank = [part for part in theirs if part.rank == rank]
            message = whole[start : start + sum(part.numel for part in of_rank)]
            start += message.numel()
            works.append(dist.irecv(message, rank))
            parts |= dict(zip(of_rank, _places(of_rank, message), strict=True))
        return _Arriving(parts, works)

    def _tensors(self, entry: Entry, arrived: dict[Part, Tensor], dtype: torch.dtype):
        parts = [
            arrived[part]
            if part in arrived
            else _values(self._parameters[part.chunk][part.name]).to(dtype)
            for part in entry.parts
        ]
        whole = unshard(entry.rule.layout, parts, self._config.vocab_size)
        groups, head_dim = self._config.num_query_groups, self._config.kv_channels
        heads = split(entry.rule.layout, whole, groups, head_dim)
        return zip(entry.rule.hf_names, heads, strict=True)

    def _space(self, which: int, parts: list[Part], dtype: torch.dtype) -> Tensor:
        """Returns flat memory for the parts, kept from sync to sync: fresh pages cost more than a
        copy.
        """
        size = sum(part.numel for part in parts) * dtype.itemsize
        if self._spaces[which].numel() < size:
            self._spaces[which] = torch.empty(size, dtype=torch.uint8, device=self._device)
        return self._spaces[which][:size].view(dtype)


@dataclass(frozen=True)
class _Arriving:
    """A bucket's parts from other ranks, there once the works are waited for."""

    parts: dict[Part, Tensor]
    works: list[dist.Work]


def _values(parameter: Tensor) -> Tensor:
    """Returns the weight that the trainer computes with: of a parameter that Transformer Engine
    holds in FP8, what its codes stand for.
    """
    return parameter.dequantize() if is_float8tensor(parameter) else parameter.detach()


def _places(parts: list[Part], message: Tensor) -> list[Tensor]:
    """Returns where in a message each part lies."""
    pieces = message.split([part.numel for part in parts])
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
