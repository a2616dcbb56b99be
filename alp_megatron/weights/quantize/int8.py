"""int8 with one scale for each output channel, symmetric."""

import torch
from torch import Tensor

from alp_megatron.weights.quantize.scales import nonzero

LEVELS = 255  # from -128 to 127


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [n, k] -> codes int8 [n, k] and scales float32 [n, 1]; weight ~ codes x scales.

    In float32: scale = max|row| / 127.5, code = weight / scale rounded half to even and clamped
    to [-128, 127]. The largest magnitude lies half a step outside the codes on either side, so
    no element is farther than half a scale from its value (compressed-tensors' convention).
    A row of zeros has codes 0.
    """
    weight = weight.float()
    scales = nonzero(weight.abs().amax(1, keepdim=True) / (LEVELS / 2))
    return (weight / scales).round_().clamp_(-128, 127).to(torch.int8), scales
