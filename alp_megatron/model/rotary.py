"""Rotary embedding: the frequencies of config.json, and positions of packed rows."""

import math

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from alp_megatron.config.rope import Rope


def inverse_frequencies(rope: Rope, head_dim: int, device: torch.device) -> Tensor:
    """fp32 [head_dim / 2], in radians a position.

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
