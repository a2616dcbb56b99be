"""Rounding to FP8 and back, by torch's float8 types."""

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
E5M2 = torch.float8_e5m2


def largest(dtype: torch.dtype) -> float:
    """448 for E4M3, 57344 for E5M2."""
    return torch.finfo(dtype).max


def encode(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """FP8 codes of values * scale: to the nearest, ties to even; what is larger than the largest
    finite value, infinity included, becomes that value; NaN stays NaN.

    values: fp32; scale: fp32, broadcast.
    """
    limit = largest(dtype)  # torch's own answer to an overflow has changed between versions
    return (values * scale).clamp_(-limit, limit).to(dtype)


def round_trip(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """What the codes of `encode` stand for, fp32."""
    return encode(values, scale, dtype).float().mul_(scale.reciprocal())
