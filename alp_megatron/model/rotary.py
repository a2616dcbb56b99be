"""Rotary embedding by each token's own position, for packed rows on the local spec."""

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor


class PackedRotaryEmbedding(RotaryEmbedding):
    """Megatron's frequencies, looked up by position: the packed row restarts at every sequence.

    GPTModel asks for a length and hands it back to `forward`; here the "length" is the
    micro-batch's positions.
    """

    def get_rotary_seq_len(
        self, inference_context, transformer, transformer_input, config, packed_seq_params
    ) -> Tensor:
        return packed_seq_params.positions

    def forward(self, positions: Tensor, packed_seq=False, cp_group=None) -> Tensor:
        """positions [T] -> angles [T, 1, 1, d]."""
        freqs = torch.outer(positions.to(self.inv_freq.dtype), self.inv_freq)
        return torch.cat((freqs, freqs), dim=-1)[:, None, None, :]
