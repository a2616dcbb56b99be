"""Causal attention over packed sequences through torch's SDPA, for the local layer spec."""

from dataclasses import dataclass

import numpy as np
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
