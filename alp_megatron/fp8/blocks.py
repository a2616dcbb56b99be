"""Rounding with one scale for each block of a matrix."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from alp_megatron.fp8.casts import round_trip

# (amax, FP8 type) -> scale
ScaleRule = Callable[[Tensor, torch.dtype], Tensor]


def row_scales(matrix: Tensor, size: int, dtype: torch.dtype, rule: ScaleRule) -> Tensor:
    """The scale [r, c] of every element of a matrix [r, c], fp32, with blocks of 1 x size along
    the last dimension; the last block of a row may be shorter."""
    columns = matrix.shape[1]
    blocks = pad(matrix, (0, -columns % size)).unflatten(1, (-1, size))
    scale = rule(blocks.abs().amax(-1, keepdim=True), dtype)
    return scale.expand_as(blocks).flatten(1)[:, :columns]


def round_rows(matrix: Tensor, size: int, dtype: torch.dtype, rule: ScaleRule) -> Tensor:
    """With the scales of `row_scales`."""
    return round_trip(matrix, row_scales(matrix, size, dtype, rule), dtype)


def round_columns(matrix: Tensor, size: int, dtype: torch.dtype, rule: ScaleRule) -> Tensor:
    """Blocks of size x 1, along the first dimension."""
    return round_rows(matrix.t(), size, dtype, rule).t()


def round_squares(matrix: Tensor, size: int, dtype: torch.dtype, rule: ScaleRule) -> Tensor:
    """Blocks of size x size; those at the lower and right edges may be smaller."""
    rows, columns = matrix.shape
    padded = pad(matrix, (0, -columns % size, 0, -rows % size))
    blocks = padded.unflatten(1, (-1, size)).unflatten(0, (-1, size))
    scale = rule(blocks.abs().amax((1, 3), keepdim=True), dtype)
    rounded = round_trip(blocks, scale, dtype)
    return rounded.flatten(2).flatten(0, 1)[:rows, :columns]
