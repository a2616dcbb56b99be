"""int4 with one scale for a group of neighbouring input channels, symmetric, weights only."""

import torch
from torch import Tensor

from alp_megatron.weights.quantize.scales import nonzero

LEVELS = 15  # from -8 to 7


def quantize_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """weight [n, k] -> codes int8 [n, k] in [-8, 7] and scales [n, k / group] in weight's dtype.

    In float32: scale = max|group| / 7.5, rounded to the weight's dtype because that is what the
    engine multiplies with; code = weight / scale rounded half to even and clamped. A group of
    zeros has codes 0.
    """
    n, k = weight.shape
    groups = weight.float().view(n, k // group, group)
    scales = nonzero((groups.abs().amax(2) / (LEVELS / 2)).to(weight.dtype))
    codes = (groups / scales.float()[..., None]).round_().clamp_(-8, 7)
    return codes.view(n, k).to(torch.int8), scales


def pack_int4(codes: Tensor) -> Tensor:
    """codes [n, k] in [-8, 7] -> int32 [n, k / 8]: eight a word, the first in the lowest bits,
    each with 8 added (compressed-tensors' `pack-quantized`)."""
    nibbles = (codes + 8).view(torch.uint8)
    return (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).view(torch.int32)  # little-endian hosts
