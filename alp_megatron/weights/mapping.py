"""Which Hugging Face tensors make which Megatron parameter, as data.

A rule is (layout, Hugging Face names). The layout says how the names' tensors merge and how the
merged tensor is split over tensor-parallel ranks:

    replicated  one tensor, whole on every rank
    column      one tensor, split along dimension 0
    vocab       like column, rows padded at the end to a multiple of TP
    row         one tensor, split along dimension 1
    qkv         q, k, v interleaved by query group, then split along dimension 0
    gate_up     gate and up, each split along dimension 0, the parts stacked
"""

import re
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

LAYER = "model.layers.{i}."
ATTENTION = LAYER + "self_attn."
MLP = LAYER + "mlp."
EXPERT = MLP + "experts.{e}."

DENSE = {
    "embedding.word_embeddings.weight": ("vocab", "model.embed_tokens.weight"),
    "decoder.final_layernorm.weight": ("replicated", "model.norm.weight"),
    "output_layer.weight": ("vocab", "lm_head.weight"),
    "input_layernorm.weight": ("replicated", LAYER + "input_layernorm.weight"),
    "self_attention.linear_qkv.weight": (
        "qkv",
        ATTENTION + "q_proj.weight",
        ATTENTION + "k_proj.weight",
        ATTENTION + "v_proj.weight",
    ),
    "self_attention.linear_proj.weight": ("row", ATTENTION + "o_proj.weight"),
    "pre_mlp_layernorm.weight": ("replicated", LAYER + "post_attention_layernorm.weight"),
    "mlp.linear_fc1.weight": ("gate_up", MLP + "gate_proj.weight", MLP + "up_proj.weight"),
    "mlp.linear_fc2.weight": ("row", MLP + "down_proj.weight"),
}
# Transformer Engine fuses each norm into the linear behind it.
DENSE["self_attention.linear_qkv.layer_norm_weight"] = DENSE["input_layernorm.weight"]
DENSE["mlp.linear_fc1.layer_norm_weight"] = DENSE["pre_mlp_layernorm.weight"]

QKV_BIAS = {
    "self_attention.linear_qkv.bias": (
        "qkv",
        ATTENTION + "q_proj.bias",
        ATTENTION + "k_proj.bias",
        ATTENTION + "v_proj.bias",
    ),
}
# A row-parallel linear adds its bias once, after the sum over TP.
OTHER_BIASES = {
    "self_attention.linear_proj.bias": ("replicated", ATTENTION + "o_proj.bias"),
    "mlp.linear_fc1.bias": ("gate_up", MLP + "gate_proj.bias", MLP + "up_proj.bias"),
    "mlp.linear_fc2.bias": ("replicated", MLP + "down_proj.bias"),
}
QK_NORM = {
    "self_attention.q_layernorm.weight": ("replicated", ATTENTION + "q_norm.weight"),
    "self_attention.k_layernorm.weight": ("replicated", ATTENTION + "k_norm.weight"),
}
EXPERTS = {
    "mlp.router.weight": ("replicated", MLP + "gate.weight"),
    "mlp.experts.local_experts.linear_fc1.weight": (
        "gate_up",
        EXPERT + "gate_proj.weight",
        EXPERT + "up_proj.weight",
    ),
    "mlp.experts.local_experts.linear_fc2.weight": ("row", EXPERT + "down_proj.weight"),
}

FAMILIES = {
    "llama": DENSE | QKV_BIAS | OTHER_BIASES,
    "mistral": DENSE,
    "qwen2": DENSE | QKV_BIAS,
    "qwen3": DENSE | QK_NORM,
    "qwen3_moe": DENSE | QK_NORM | EXPERTS,
}

# The sigmas belong to the training policy alone: they never leave in an export.
PRIVATE_SUFFIX = "log_sigma_scale"


_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_EXPERT = re.compile(r"(?<=\.local_experts\.)(\d+)\.")


class Rule(NamedTuple):
    """Says how one Megatron parameter corresponds to Hugging Face tensors.

    `expert`: it belongs to one expert, which one rank of the expert-parallel group has whole;
    the layout's split over TP does not apply to it.
    """

    layout: str
    hf_names: tuple[str, ...]
    expert: bool


def rule_of(
    model_type: str, name: str, layer: int | None, expert: int | None, tied: bool
) -> Rule | None:
    """Returns the rule of a parameter of one model chunk, or None if it has no Hugging Face
    counterpart.

    Args:
        name: its name within the chunk, e.g. `decoder.layers.0.mlp.linear_fc2.weight`.
        layer: the layer's number in the whole model, from 0; None outside the layers.
        expert: the expert's number in the whole layer, from 0; None outside the experts.
        tied: the model shares input and output embedding, so `lm_head` is not on disk.
    """
    if name.endswith(PRIVATE_SUFFIX):
        return None
    layout, *names = FAMILIES[model_type][_EXPERT.sub("", _LAYER.sub("", name))]
    names = [n.format(i=layer, e=expert) for n in names]
    if tied and names == ["lm_head.weight"]:
        names = ["model.embed_tokens.weight"]
    return Rule(layout, tuple(names), expert is not None)


def rules_of_chunk(chunk, model_type: str) -> dict[str, Rule]:
    """Returns the rules of all exportable parameters that this rank holds of a PolicyModel, by
    local name.

    Layers and experts have the whole model's numbers in the Hugging Face names.
    """
    tied = chunk.share_embeddings_and_output_weights
    rules = {}
    for name, _ in chunk.named_parameters():
        rule = rule_of(model_type, name, *_global_numbers(chunk, name), tied)
        if rule is not None:
            rules[name] = rule
    return rules


def _global_numbers(chunk, name: str) -> tuple[int | None, int | None]:
    """Returns the numbers, from 0, of the layer and the expert that own a chunk's parameter."""
    in_layer, in_expert = _LAYER.search(name), _EXPERT.search(name)
    if in_layer is None:
        return None, None
    layer = chunk.decoder.layers[int(in_layer[1])]
    expert = layer.mlp.local_expert_indices[int(in_expert[1])] if in_expert else None
    return layer.layer_number - 1, expert


def merge(layout: str, parts: list[Tensor], query_groups: int) -> Tensor:
    """Makes the whole Megatron parameter of Hugging Face tensors."""
    if layout == "qkv":
        grouped = [t.reshape(query_groups, -1, *t.shape[1:]) for t in parts]
        return torch.cat(grouped, dim=1).flatten(0, 1)
    return torch.cat(parts) if layout == "gate_up" else parts[0]


def split(layout: str, whole: Tensor, query_groups: int, head_dim: int) -> list[Tensor]:
    """Makes Hugging Face tensors of the whole Megatron parameter. Inverse of `merge`."""
    if layout == "qkv":
        heads = whole.reshape(query_groups, -1, head_dim, *whole.shape[1:])
        q, k, v = heads[:, :-2], heads[:, -2:-1], heads[:, -1:]
        return [t.flatten(0, 2).contiguous() for t in (q, k, v)]
    return list(whole.chunk(2)) if layout == "gate_up" else [whole]


def shard(layout: str, whole: Tensor, rank: int, size: int) -> Tensor:
    """Cuts the part of one tensor-parallel rank from the whole Megatron parameter."""
    if layout == "replicated" or size == 1:
        return whole
    if layout == "gate_up":
        return torch.cat([half.chunk(size)[rank] for half in whole.chunk(2)])
    if layout == "vocab":
        padding = -whole.shape[0] % size
        whole = pad(whole, (0, 0, 0, padding))
    return whole.chunk(size, dim=1 if layout == "row" else 0)[rank]


def unshard(layout: str, parts: list[Tensor], vocab_size: int) -> Tensor:
    """Joins the parts of all tensor-parallel ranks to the whole parameter. Inverse of `shard`."""
    if layout == "replicated" or len(parts) == 1:
        return parts[0]
    if layout == "gate_up":
        halves = [part.chunk(2) for part in parts]
        return torch.cat([half[side] for side in (0, 1) for half in halves])
    whole = torch.cat(parts, dim=1 if layout == "row" else 0)
    return whole[:vocab_size] if layout == "vocab" else whole
