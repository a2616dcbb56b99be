"""Merging, splitting and sharding of tensors for each layout of `mapping`. Pure functions."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def merge(layout: str, parts: list[Tensor], query_groups: int) -> Tensor:
    """Hugging Face tensors -> the whole Megatron parameter."""
    if layout == "qkv":
        grouped = [t.reshape(query_groups, -1, *t.shape[1:]) for t in parts]
        return torch.cat(grouped, dim=1).flatten(0, 1)
    return torch.cat(parts) if layout == "gate_up" else parts[0]


def split(layout: str, whole: Tensor, query_groups: int, head_dim: int) -> list[Tensor]:
    """The whole Megatron parameter -> Hugging Face tensors. Inverse of `merge`."""
    if layout == "qkv":
        heads = whole.reshape(query_groups, -1, head_dim, *whole.shape[1:])
        q, k, v = heads[:, :-2], heads[:, -2:-1], heads[:, -1:]
        return [t.flatten(0, 2).contiguous() for t in (q, k, v)]
    return list(whole.chunk(2)) if layout == "gate_up" else [whole]


def shard(layout: str, whole: Tensor, rank: int, size: int) -> Tensor:
    """The whole Megatron parameter -> the part of one tensor-parallel rank."""
    if layout == "replicated" or size == 1:
        return whole
    if layout == "gate_up":
        return torch.cat([half.chunk(size)[rank] for half in whole.chunk(2)])
    if layout == "vocab":
        padding = -whole.shape[0] % size
        whole = pad(whole, (0, 0, 0, padding))
    return whole.chunk(size, dim=1 if layout == "row" else 0)[rank]


def unshard(layout: str, parts: list[Tensor], vocab_size: int) -> Tensor:
    """The parts of all tensor-parallel ranks -> the whole parameter. Inverse of `shard`."""
    if layout == "replicated" or len(parts) == 1:
        return parts[0]
    if layout == "gate_up":
        halves = [part.chunk(2) for part in parts]
        return torch.cat([half[side] for side in (0, 1) for half in halves])
    whole = torch.cat(parts, dim=1 if layout == "row" else 0)
    return whole[:vocab_size] if layout == "vocab" else whole
