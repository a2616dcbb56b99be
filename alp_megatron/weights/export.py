"""The export stream: every weight under its Hugging Face name, gathered over TP and PP.

The same stream serves a checkpoint on disk and a live sync into the rollout engine.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from alp_megatron.weights.layouts import split, unshard
from alp_megatron.weights.mapping import Rule, rules_of_chunk


@dataclass(frozen=True)
class _Entry:
    """One Megatron parameter: the pipeline stage and chunk that own it, and how it is laid out."""

    stage: int
    chunk: int
    name: str
    rule: Rule
    shape: tuple[int, ...]  # of one tensor-parallel part


class ExportPlan:
    """Made once; the order of the stream is fixed: embedding, layers by number, norm, head.

    Args:
        chunks: this rank's PolicyModel chunks (all ranks of the run make the plan together).
    """

    def __init__(self, chunks: list, model_type: str):
        self._chunks = chunks
        self._config = chunks[0].config
        self._parameters = [dict(chunk.named_parameters()) for chunk in chunks]
        self._stages = parallel_state.get_pipeline_model_parallel_group()
        self._tp = parallel_state.get_tensor_model_parallel_group()
        self._stage = parallel_state.get_pipeline_model_parallel_rank()
        mine = [
            _Entry(self._stage, index, name, rule, tuple(self._parameters[index][name].shape))
            for index, chunk in enumerate(chunks)
            for name, rule in rules_of_chunk(chunk, model_type).items()
        ]
        gathered: list = [None] * dist.get_world_size(self._stages)
        dist.all_gather_object(gathered, mine, group=self._stages)
        entries: dict[tuple, _Entry] = {}
        for entry in (e for stage in gathered for e in stage):
            entries.setdefault(entry.rule.hf_names, entry)  # tied embedding: the first stage's
        self.entries = sorted(entries.values(), key=_stream_order)

    @torch.no_grad()
    def stream(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, whole tensor in `dtype`) on rank 0. A collective call of the whole run.

        The other ranks get an empty stream that they must run through. Parts are cast before
        they travel, and rank 0 holds one parameter at a time.
        """
        if parallel_state.get_data_parallel_rank() != 0:
            return
        for entry in self.entries:
            whole = self._whole(entry, dtype)
            if dist.get_rank() == 0:
                heads = split(
                    entry.rule.layout,
                    whole,
                    self._config.num_query_groups,
                    self._config.kv_channels,
                )
                yield from zip(entry.rule.hf_names, heads, strict=True)

    def _whole(self, entry: _Entry, dtype: torch.dtype) -> Tensor | None:
        """The whole parameter on rank 0; None elsewhere."""
        tp_rank, tp_size = dist.get_rank(self._tp), dist.get_world_size(self._tp)
        if self._stage != entry.stage:
            if self._stage != 0 or tp_rank != 0:
                return None
            parts = [_empty_like(entry.shape, dtype, self._chunks) for _ in range(tp_size)]
            if entry.rule.layout == "replicated":
                parts = parts[:1]
            source = dist.get_global_rank(self._stages, entry.stage)
            for part in parts:
                dist.recv(part, source, group=self._stages)
            return unshard(entry.rule.layout, parts, self._config.vocab_size)
        mine = self._parameters[entry.chunk][entry.name].detach().to(dtype).contiguous()
        parts = [mine]
        if entry.rule.layout != "replicated" and tp_size > 1:
            parts = [torch.empty_like(mine) for _ in range(tp_size)]
            dist.all_gather(parts, mine, group=self._tp)
        if tp_rank != 0:
            return None
        if entry.stage != 0:
            for part in parts:
                dist.send(part, dist.get_global_rank(self._stages, 0), group=self._stages)
            return None
        return unshard(entry.rule.layout, parts, self._config.vocab_size)


def _empty_like(shape, dtype, chunks) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=next(chunks[0].parameters()).device)


_OUTSIDE = {"model.embed_tokens.weight": -1, "model.norm.weight": 2**30, "lm_head.weight": 2**31}


def _stream_order(entry: _Entry) -> tuple:
    name = entry.rule.hf_names[0]
    layer = _OUTSIDE[name] if name in _OUTSIDE else int(name.split(".")[2])
    return layer, name
