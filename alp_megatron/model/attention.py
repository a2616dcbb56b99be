"""Causal attention over packed sequences through torch's SDPA, for the local layer spec."""

from dataclasses import dataclass

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# A group's shortest sequence is at least this share of its longest: fewer calls against
# attention computed on padding.
MIN_LENGTH_SHARE = 0.75


@dataclass
class AttentionLayout:
    """How the row of tokens is cut into rectangular groups of similar length.

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
        starts = [0]
        for n in segment_lengths:
            starts.append(starts[-1] + n)
        order = sorted(range(len(segment_lengths)), key=lambda i: -segment_lengths[i])
        groups, places, offset = [], torch.empty(starts[-1], dtype=torch.int64), 0
        while order:
            length = segment_lengths[order[0]]
            members = [i for i in order if segment_lengths[i] >= MIN_LENGTH_SHARE * length]
            order = order[len(members) :]
            steps = torch.arange(length)
            rows = []
            for i in members:
                n = segment_lengths[i]
                places[starts[i] : starts[i + 1]] = offset + steps[:n]
                rows.append(starts[i] + torch.where(steps < n, steps, 0))
                offset += length
            groups.append((torch.cat(rows), len(members), length))
        return cls(groups, places)


class PackedAttention(MegatronModule):
    """Core attention of Megatron's SelfAttention: [T, 1, heads, d] in, [T, 1, heads * d] out.

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
