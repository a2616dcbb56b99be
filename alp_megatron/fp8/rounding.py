"""Rounds to FP8 and back: casts, scales, blocks."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

E4M3 = torch.float8_e4m3fn
E5M2 = torch.float8_e5m2


def largest(dtype: torch.dtype) -> float:
    """Returns 448 for E4M3, 57344 for E5M2."""
    return torch.finfo(dtype).max


def saturate(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts to FP8: to the nearest, ties to even; what is larger than the largest finite value,
    infinity included, becomes that value; NaN stays NaN. Overwrites the fp32 `values`."""
    limit = largest(dtype)  # torch's own answer to an overflow has changed between versions
    return values.clamp_(-limit, limit).to(dtype)


def encode(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the FP8 codes of values * scale, rounded as `saturate` does.

    values: fp32; scale: fp32, broadcast.
    """
    return saturate(values * scale, dtype)


def round_trip(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what the codes of `encode` stand for, fp32."""
    return encode(values, scale, dtype).float().mul_(scale.reciprocal())


# From the largest absolute value (amax) to the factor that a tensor or block is multiplied with.
#
# The formulae are those of Transformer Engine 2.11 (common/recipe/recipe_common.cuh,
# common/recipe/delayed_scaling.cu, common/util/ptx.cuh).

_EXPONENT_BITS = torch.iinfo(torch.int32).min + 0x7F800000  # 0xFF800000: mantissa off
_FLOAT32_MAX = torch.finfo(torch.float32).max


def float32_scale(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns largest / amax: the largest value becomes FP8's largest.

    1 where amax is 0, infinite or NaN; fp32's largest number where the quotient overflows.
    """
    # As a tensor: a Python number divided by a tensor is its product with the reciprocal, which
    # rounds twice.
    limit = torch.full_like(amax, largest(dtype))
    scale = (limit / amax).clamp(max=_FLOAT32_MAX)
    return torch.where(usable(amax), scale, 1.0)


def power_of_two_scale(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns `float32_scale` rounded down to a power of two, as the blockwise recipe has it."""
    scale = float32_scale(amax, dtype)
    return (scale.view(torch.int32) & _EXPONENT_BITS).view(torch.float32)


def e8m0_scale(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns 1 / 2^e, 2^e the least power of two >= amax / largest (E8M0, from 2^-126 on).

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
    """Returns whether a scale can be made of it."""
    return (amax > 0) & amax.isfinite()


# (amax, FP8 type) -> scale
ScaleRule = Callable[[Tensor, torch.dtype], Tensor]


def row_scales(matrix: Tensor, size: int, dtype: torch.dtype, rule: ScaleRule) -> Tensor:
    """Returns the scale [r, c] of every element of a matrix [r, c], fp32, with blocks of 1 x size
    along the last dimension; the last block of a row may be shorter."""
    columns = matrix.shape[1]
    blocks = pad(matrix, (0, -columns % size)).unflatten(1, (-1, size))
    scale = rule(blocks.abs().amax(-1, keepdim=True), dtype)
    return scale.expand_as(blocks).flatten(1)[:, :columns]


def round_rows(matrix: Tensor, size: int, dtype: torch.dtype, rule: ScaleRule) -> Tensor:
    """Rounds with the scales of `row_scales`."""
    return round_trip(matrix, row_scales(matrix, size, dtype, rule), dtype)


def round_columns(matrix: Tensor, size: int, dtype: torch.dtype, rule: ScaleRule) -> Tensor:
    """Rounds blocks of size x 1, along the first dimension."""
    return round_rows(matrix.t(), size, dtype, rule).t()


def round_squares(matrix: Tensor, size: int, dtype: torch.dtype, rule: ScaleRule) -> Tensor:
    """Rounds blocks of size x size; those at the lower and right edges may be smaller."""
    rows, columns = matrix.shape
    padded = pad(matrix, (0, -columns % size, 0, -rows % size))
    blocks = padded.unflatten(1, (-1, size)).unflatten(0, (-1, size))
    scale = rule(blocks.abs().amax((1, 3), keepdim=True), dtype)
    rounded = round_trip(blocks, scale, dtype)
    return rounded.flatten(2).flatten(0, 1)[:rows, :columns]
