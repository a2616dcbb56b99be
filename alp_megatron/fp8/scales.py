"""From the largest absolute value (amax) to the factor that a tensor or block is multiplied with.

The formulae are those of Transformer Engine 2.11 (common/recipe/recipe_common.cuh,
common/recipe/delayed_scaling.cu, common/util/ptx.cuh).
"""

import torch
from torch import Tensor

from alp_megatron.fp8.casts import largest

_EXPONENT_BITS = torch.iinfo(torch.int32).min + 0x7F800000  # 0xFF800000: mantissa off
_FLOAT32_MAX = torch.finfo(torch.float32).max


def float32_scale(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """largest / amax: the largest value becomes FP8's largest.

    1 where amax is 0, infinite or NaN; fp32's largest number where the quotient overflows.
    """
    # As a tensor: a Python number divided by a tensor is its product with the reciprocal, which
    # rounds twice.
    limit = torch.full_like(amax, largest(dtype))
    scale = (limit / amax).clamp(max=_FLOAT32_MAX)
    return torch.where(usable(amax), scale, 1.0)


def power_of_two_scale(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """`float32_scale` rounded down to a power of two, as the blockwise recipe has it."""
    scale = float32_scale(amax, dtype)
    return (scale.view(torch.int32) & _EXPONENT_BITS).view(torch.float32)


def e8m0_scale(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / 2^e with 2^e the least power of two >= amax / largest (an E8M0 number, from 2^-126 on).

    From the OCP Microscaling formats, with the rounding of Transformer Engine. 1 where amax is
    0, infinite or NaN.
    """
    ratio = (amax * (1.0 / largest(dtype))).clamp(min=torch.finfo(torch.float32).tiny)
    mantissa, exponent = torch.frexp(ratio)  # ratio = mantissa * 2^exponent, mantissa in [0.5, 1)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    scale = torch.ldexp(torch.ones_like(amax), -exponent)
    return torch.where(usable(amax), scale, 1.0)


# Recipe with blocks -> (elements of a block along the contracted dimension, its scale).
BLOCK_SCALES = {"blockwise": (128, power_of_two_scale), "mxfp8": (32, e8m0_scale)}


def usable(amax: Tensor) -> Tensor:
    """Whether a scale can be made of it."""
    return (amax > 0) & amax.isfinite()
