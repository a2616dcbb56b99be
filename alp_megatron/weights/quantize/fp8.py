"""8-bit floating point (e4m3), one scale for each output channel or each 128 x 128 block.

Per channel and not per tensor: vLLM runs q, k and v as one matrix, and gate and up as another. With
a scale for each tensor it would decode and encode the parts again under their largest scale, so
that the running codes are not those that were sent. Scales per channel stack as they are.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from alp_megatron.weights.quantize.scales import nonzero
from alp_megatron.weights.quantize.scheme import BLOCK

LARGEST = 448.0  # of e4m3


def quantize_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [n, k] -> codes float8_e4m3fn [n, k] and scales float32 [n, 1].

    In float32: scale = max|row| / 448, code = weight / scale clamped to [-448, 448] and rounded
    half to even. A row of zeros has codes 0.
    """
    weight = weight.float()
    scales = nonzero(weight.abs().amax(1, keepdim=True) / LARGEST)
    return _cast(weight / scales), scales


def quantize_fp8_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [n, k] -> codes float8_e4m3fn [n, k], scales float32 [ceil(n/128), ceil(k/128)].

    As `quantize_fp8`, with the largest magnitude of a block; blocks at the lower and right edge
    are smaller where 128 does not divide n or k.
    """
    n, k = weight.shape
    padded = pad(weight.float(), (0, -k % BLOCK, 0, -n % BLOCK))
    rows, columns = padded.shape[0] // BLOCK, padded.shape[1] // BLOCK
    blocks = padded.view(rows, BLOCK, columns, BLOCK)
    scales = nonzero(blocks.abs().amax((1, 3)) / LARGEST)
    codes = (blocks / scales[:, None, :, None]).view(padded.shape)[:n, :k]
    return _cast(codes).contiguous(), scales


def _cast(quotient: Tensor) -> Tensor:
    # Beyond 448 some versions of torch cast to NaN.
    return quotient.clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
