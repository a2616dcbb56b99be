"""The noise itself, as a function of its names."""

import torch
from torch import Tensor

from alp_megatron.perturbation.backend import kernels
from alp_megatron.perturbation.key import NoiseKey
from alp_megatron.perturbation.philox import MAX_CHANNELS, MAX_LAYERS


def gaussian(
    key: NoiseKey,
    layer: int,
    sample_ids: Tensor,
    positions: Tensor,
    hidden_size: int,
    *,
    channel_start: int = 0,
) -> Tensor:
    """z(key, layer, sample, position, channel) ~ N(0, 1): the same bits at every call.

    sample_ids, positions: int64 [n], on the device that shall hold the result; positions are
    below 2**32; rows with a negative sample id are padding and get 0. layer: the global layer
    number, from 0. Returns fp32 [n, hidden_size], channels channel_start onwards. Raises
    ValueError for arguments outside these.
    """
    if sample_ids.dim() != 1 or sample_ids.shape != positions.shape:
        raise ValueError(
            f"sample_ids and positions must be [n] both, not {tuple(sample_ids.shape)} "
            f"and {tuple(positions.shape)}"
        )
    if sample_ids.dtype != torch.int64 or positions.dtype != torch.int64:
        raise ValueError(
            f"sample_ids and positions must be int64, not {sample_ids.dtype} and {positions.dtype}"
        )
    if not 0 <= layer < MAX_LAYERS:
        raise ValueError(f"layer must lie in [0, {MAX_LAYERS}), not be {layer}")
    if hidden_size < 1 or not 0 <= channel_start <= MAX_CHANNELS - hidden_size:
        raise ValueError(
            f"channels {channel_start} to {channel_start + hidden_size} must lie in "
            f"[0, {MAX_CHANNELS})"
        )
    device = sample_ids.device
    words = torch.tensor(key.words(), dtype=torch.int64, device=device)
    out = torch.empty(len(sample_ids), hidden_size, dtype=torch.float32, device=device)
    kernels(device).fill(words, layer, sample_ids, positions, channel_start, out)
    return out
