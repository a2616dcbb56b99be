"""Which rank holds which part of which tensor, and the buckets in which the parts travel.

Pure functions: what every rank holds goes in, the order of the whole stream comes out.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from alp_megatron.weights.mapping import Rule


@dataclass(frozen=True)
class Part:
    """What one rank holds of a Megatron parameter.

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
    """The parameters in the stream's order: embedding, layers by number, norm, head.

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


def buckets_of(entries: list[Entry], capacity: int, itemsize: int) -> Iterator[list[Entry]]:
    """Runs of entries of at most `capacity` bytes; a larger entry has a bucket to itself."""
    bucket: list[Entry] = []
    size = 0
    for entry in entries:
        nbytes = entry.numel * itemsize
        if bucket and size + nbytes > capacity:
            yield bucket
            bucket, size = [], 0
        bucket.append(entry)
        size += nbytes
    if bucket:
        yield bucket


_OUTSIDE = {"model.embed_tokens.weight": -1, "model.norm.weight": 2**30, "lm_head.weight": 2**31}


def _stream_order(entry: Entry) -> tuple:
    name = entry.rule.hf_names[0]
    layer = _OUTSIDE[name] if name in _OUTSIDE else int(name.split(".")[2])
    # Numbers by value, so that expert 10 follows expert 9.
    return layer, [(int(s), "") if s.isdigit() else (-1, s) for s in re.split(r"(\d+)", name)]
