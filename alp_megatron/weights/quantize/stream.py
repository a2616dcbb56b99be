"""The export stream with codes and scales in place of the weights that a scheme quantises."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from alp_megatron.errors import UserError
from alp_megatron.weights.quantize.fp8 import quantize_fp8, quantize_fp8_blocks
from alp_megatron.weights.quantize.int4 import pack_int4, quantize_int4
from alp_megatron.weights.quantize.int8 import quantize_int8
from alp_megatron.weights.quantize.pieces import by_pieces
from alp_megatron.weights.quantize.scheme import BLOCK, Scheme


def quantized(
    stream: Iterable[tuple[str, Tensor]], scheme: Scheme | None
) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) -> the same with codes and scales, on the tensor's device.

    The names are compressed-tensors': `weight` and `weight_scale`, for int4 `weight_packed`,
    `weight_scale` and `weight_shape`. Without a scheme the stream passes unchanged.

    Raises UserError naming a weight that holds NaN or infinity: it has no scale.
    """
    for name, tensor in stream:
        if scheme is None or name not in scheme.groups:
            yield name, tensor
            continue
        codes, scales = _codes_and_scales(tensor, scheme.quantization, scheme.groups[name])
        if not scales.isfinite().all():
            raise UserError(
                f"tensor {name} holds NaN or infinite values and cannot be quantised to "
                f"{scheme.quantization}: mend the model, or set rollout.quantization=none."
            )
        if scheme.quantization == "int4":
            # vLLM's reload counts elements, and this tensor once for each part of a fused matrix:
            # it goes first, so that a matrix is never taken for complete before its last codes.
            yield f"{name}_shape", torch.tensor(tensor.shape)
            yield f"{name}_packed", codes
        else:
            yield name, codes
        yield f"{name}_scale", scales


def _codes_and_scales(weight: Tensor, quantization: str, group: int) -> tuple[Tensor, Tensor]:
    if quantization == "int8":
        return by_pieces(quantize_int8, weight)
    if quantization == "fp8":
        return by_pieces(quantize_fp8, weight)
    if quantization == "fp8_block":
        return by_pieces(quantize_fp8_blocks, weight, BLOCK)

    def packed(rows: Tensor) -> tuple[Tensor, Tensor]:
        codes, scales = quantize_int4(rows, group)
        return pack_int4(codes), scales

    return by_pieces(packed, weight)
