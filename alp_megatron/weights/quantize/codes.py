"""From weights to codes and scales, in every format."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from alp_megatron.fp8.rounding import E4M3, largest, saturate
from alp_megatron.weights.quantize.scheme import BLOCK

# The scale of what is all zeros (compressed-tensors' choice): any will do, but none may be 0.
OF_ZEROS = 2.0**-23


def nonzero(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, OF_ZEROS, scales)


def divided(values: Tensor, by: float) -> Tensor:
    """Returns values / by with the same bits on every device: CUDA would multiply by the inverse of
    a number, but divides by a tensor."""
    return values / torch.full((), by, dtype=values.dtype, device=values.device)


Quantize = Callable[[Tensor], tuple[Tensor, Tensor]]

# Of float32 in the cache of one core: going through memory instead makes it three times slower.
CACHED = 2**18


def by_pieces(quantize: Quantize, weight: Tensor, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Does `quantize(weight)` piece by piece, for a quantisation that looks at no other row, or at
    no other `multiple` of rows, to make the codes and scales of one.
    """
    if weight.is_cuda:
        return quantize(weight)
    rows = max(1, CACHED // (weight.shape[1] * multiple)) * multiple
    codes, scales = zip(*map(quantize, weight.split(rows)), strict=True)
    return torch.cat(codes), torch.cat(scales)


INT8_LEVELS = 255  # from -128 to 127


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [n, k] -> codes int8 [n, k] and scales float32 [n, 1]; weight ~ codes x scales.

    In float32: scale = max|row| / 127.5, code = weight / scale rounded half to even and clamped
    to [-128, 127]. The largest magnitude lies half a step outside the codes on either side, so
    no element is farther than half a scale from its value (compressed-tensors' convention).
    A row of zeros has codes 0.
    """
    weight = weight.float()
    scales = nonzero(divided(weight.abs().amax(1, keepdim=True), INT8_LEVELS / 2))
    return (weight / scales).round_().clamp_(-128, 127).to(torch.int8), scales


# 8-bit floating point (e4m3), one scale for each output channel or each 128 x 128 block.
#
# Per channel and not per tensor: vLLM runs q, k and v as one matrix, and gate and up as another.
# With a scale for each tensor it would decode and encode the parts again under their largest scale,
# so that the running codes are not those that were sent. Scales per channel stack as they are.

LARGEST = largest(E4M3)  # 448


def quantize_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [n, k] -> codes float8_e4m3fn [n, k] and scales float32 [n, 1].

    In float32: scale = max|row| / 448, code = weight / scale clamped to [-448, 448] and rounded
    half to even. A row of zeros has codes 0.
    """
    weight = weight.float()
    scales = nonzero(divided(weight.abs().amax(1, keepdim=True), LARGEST))
    return saturate(weight / scales, E4M3), scales


def quantize_fp8_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [n, k] -> codes float8_e4m3fn [n, k], scales float32 [ceil(n/128), ceil(k/128)].

    As `quantize_fp8`, with the largest magnitude of a block; blocks at the lower and right edge
    are smaller where 128 does not divide n or k.
    """
    n, k = weight.shape
    padded = pad(weight.float(), (0, -k % BLOCK, 0, -n % BLOCK))
    rows, columns = padded.shape[0] // BLOCK, padded.shape[1] // BLOCK
    blocks = padded.view(rows, BLOCK, columns, BLOCK)
    scales = nonzero(divided(blocks.abs().amax((1, 3)), LARGEST))
    codes = (blocks / scales[:, None, :, None]).view(padded.shape)[:n, :k]
    return saturate(codes, E4M3).contiguous(), scales


INT4_LEVELS = 15  # from -8 to 7


def quantize_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """weight [n, k] -> codes int8 [n, k] in [-8, 7] and scales [n, k / group] in weight's dtype.

    In float32: scale = max|group| / 7.5, rounded to the weight's dtype because that is what the
    engine multiplies with; code = weight / scale rounded half to even and clamped. A group of
    zeros has codes 0.
    """
    n, k = weight.shape
    groups = weight.float().view(n, k // group, group)
    scales = nonzero(divided(groups.abs().amax(2), INT4_LEVELS / 2).to(weight.dtype))
    codes = (groups / scales.float()[..., None]).round_().clamp_(-8, 7)
    return codes.view(n, k).to(torch.int8), scales


def pack_int4(codes: Tensor) -> Tensor:
    """codes [n, k] in [-8, 7] -> int32 [n, k / 8]: eight a word, the first in the lowest bits,
    each with 8 added (compressed-tensors' `pack-quantized`)."""
    nibbles = (codes + 8).view(torch.uint8)
    return (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).view(torch.int32)  # little-endian hosts
