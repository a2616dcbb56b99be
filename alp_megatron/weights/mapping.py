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

LAYER = "model.layers.{i}."
ATTENTION = LAYER + "self_attn."
MLP = LAYER + "mlp."

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
    "self_attention.linear_qkv.bias": (
        "qkv",
        ATTENTION + "q_proj.bias",
        ATTENTION + "k_proj.bias",
        ATTENTION + "v_proj.bias",
    ),
    "self_attention.linear_proj.weight": ("row", ATTENTION + "o_proj.weight"),
    "pre_mlp_layernorm.weight": ("replicated", LAYER + "post_attention_layernorm.weight"),
    "mlp.linear_fc1.weight": ("gate_up", MLP + "gate_proj.weight", MLP + "up_proj.weight"),
    "mlp.linear_fc2.weight": ("row", MLP + "down_proj.weight"),
}
# Transformer Engine fuses each norm into the linear behind it.
DENSE["self_attention.linear_qkv.layer_norm_weight"] = DENSE["input_layernorm.weight"]
DENSE["mlp.linear_fc1.layer_norm_weight"] = DENSE["pre_mlp_layernorm.weight"]

FAMILIES = {"qwen2": DENSE}

# The sigmas belong to the training policy alone: they never leave in an export.
PRIVATE_SUFFIX = "log_sigma_scale"


class Rule(NamedTuple):
    """How one Megatron parameter corresponds to Hugging Face tensors."""

    layout: str
    hf_names: tuple[str, ...]
    expert: bool = False


def rule_of(model_type: str, name: str, global_layer: int | None, tied: bool) -> Rule | None:
    """The rule of a parameter of one model chunk, or None if it has no Hugging Face counterpart.

    Args:
        name: its name within the chunk, e.g. `decoder.layers.0.mlp.linear_fc2.weight`.
        global_layer: the layer's number in the whole model, from 0.
        tied: the model shares input and output embedding, so `lm_head` is not on disk.
    """
    if name.endswith(PRIVATE_SUFFIX):
        return None
    layout, *names = FAMILIES[model_type][re.sub(r"^decoder\.layers\.\d+\.", "", name)]
    names = [n.format(i=global_layer) for n in names]
    if tied and names == ["lm_head.weight"]:
        names = ["model.embed_tokens.weight"]
    return Rule(layout, tuple(names))


def global_layer_of(chunk, name: str) -> int | None:
    """The number, from 0, of the layer that owns a chunk's parameter; None outside the layers."""
    match = re.match(r"decoder\.layers\.(\d+)\.", name)
    return chunk.decoder.layers[int(match[1])].layer_number - 1 if match else None


def rules_of_chunk(chunk, model_type: str) -> dict[str, Rule]:
    """The rules of all exportable parameters of a PolicyModel, by local name."""
    tied = chunk.share_embeddings_and_output_weights
    rules = {
        name: rule_of(model_type, name, global_layer_of(chunk, name), tied)
        for name, _ in chunk.named_parameters()
    }
    return {name: rule for name, rule in rules.items() if rule is not None}
