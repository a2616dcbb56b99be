"""Computes rotary embedding and causal attention of packed sequences, where there is no CUDA."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from alp_megatron.hf.shape import Rope


def inverse_frequencies(rope: Rope, head_dim: int, device: torch.device) -> Tensor:
    """Returns fp32 [head_dim / 2], in radians a position.

    Llama 3.1's scaling (https://github.com/meta-llama/llama-models, `apply_scaling`) divides by
    `factor` where a wave is longer than the original context, leaves waves much shorter than it
    as they are and blends in between. Megatron has the same formula for a context of 8192 only.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    frequencies = 1.0 / rope.theta**exponents
    scaling = rope.scaling
    if scaling is None:
        return frequencies
    waves_in_context = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((waves_in_context - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


class PackedRotaryEmbedding(RotaryEmbedding):
    """Looks Megatron's frequencies up by position: the packed row restarts at every sequence.

    GPTModel asks for a length and hands it back to `forward`; here the "length" is the
    micro-batch's positions.
    """

    def get_rotary_seq_len(
        self, inference_context, transformer, transformer_input, config, packed_seq_params
    ) -> Tensor:
        return packed_seq_params.positions

    def forward(self, positions: Tensor, packed_seq=False, cp_group=None) -> Tensor:
        """Returns, for positions [T], angles [T, 1, 1, d]."""
        freqs = torch.outer(positions.to(self.inv_freq.dtype), self.inv_freq)
        return torch.cat((freqs, freqs), dim=-1)[:, None, None, :]


# A group's shortest sequence is at least this share of its longest: fewer calls against
# attention computed on padding.
MIN_LENGTH_SHARE = 0.75


@dataclass
class AttentionLayout:
    """Says how the row of tokens is cut into rectangular groups of similar length.

    Attributes:
        groups: (rows [b*L], b, L) each: which row of tokens fills each place. Places behind a
            sequence's end repeat its first token; causality keeps the others from seeing them
            and their own output is dropped.
        places: [T] where, in the groups' concatenated outputs, each token's output lies.
    """

    groups: list[tuple[Tensor, int, int]]
    places: Tensor

    @classmethod
    def of(cls, segment_lengths: list[int]) -> "AttentionLayout":
        # numpy: torch's small operations cost several times as much.
        lengths = np.array(segment_lengths)
        starts = lengths.cumsum() - lengths
        order = np.argsort(-lengths, kind="stable")
        groups, places, offset = [], np.empty(lengths.sum(), dtype=np.int64), 0
        while order.size:
            length = int(lengths[order[0]])
            count = int((lengths[order] >= MIN_LENGTH_SHARE * length).sum())
            members, order = order[:count, None], order[count:]
            steps = np.arange(length)
            inside = steps < lengths[members]  # [b, L]
            rows = starts[members] + np.where(inside, steps, 0)
            places[rows[inside]] = offset + np.flatnonzero(inside)
            groups.append((torch.from_numpy(rows.ravel()), count, length))
            offset += rows.size
        return cls(groups, torch.from_numpy(places))


class PackedAttention(MegatronModule):
    """Is the core of Megatron's SelfAttention: [T, 1, heads, d] in, [T, 1, heads * d] out.

    No s x s mask or score matrix is kept: every group is one causal SDPA call.
    """

    def __init__(self, config, layer_number, attn_mask_type, attention_type, **kwargs):
        super().__init__(config=config)
        scale = kwargs.get("softmax_scale")
        self.scale = config.kv_channels**-0.5 if scale is None else scale

    def forward(self, query, key, value, attention_mask, *, packed_seq_params, **_):
        layout = packed_seq_params.attention_layout
        outputs = []
        for rows, b, length in layout.groups:
            q, k, v = (
                t.index_select(0, rows).view(b, length, *t.shape[2:]).transpose(1, 2)
                for t in (query, key, value)
            )
            out = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=self.scale, enable_gqa=True
            )
            outputs.append(out.transpose(1, 2).reshape(b * length, -1))
        return torch.cat(outputs).index_select(0, layout.places).unsqueeze(1)
