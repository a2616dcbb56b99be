"""The export stream with codes and scales in place of the weights that a scheme quantises."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from alp_megatron.errors import UserError
from alp_megatron.weights.quantize.fp8 import quantize_fp8, quantize_fp8_blocks
from alp_megatron.weights.quantize.int4 import pack_int4, quantize_int4
from alp_megatron.weights.quantize.int8 import quantize_int8
from alp_megatron.weights.quantize.scheme import Scheme

_PAIRS = {"int8": quantize_int8, "fp8": quantize_fp8, "fp8_block": quantize_fp8_blocks}


def quantized(
    stream: Iterable[tuple[str, Tensor]], scheme: Scheme | None
) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) -> the same with `name` + `_scale` and codes, on the tensor's device.

    The names are compressed-tensors': `weight` and `weight_scale`, for int4 `weight_packed`,
    `weight_scale` and `weight_shape`. Without a scheme the stream passes unchanged.

    Raises UserError naming a weight that holds NaN or infinity: it has no scale.
    """
    for name, tensor in stream:
        if scheme is None or name not in scheme.groups:
            yield name, tensor
            continue
        if scheme.quantization == "int4":
            codes, scales = quantize_int4(tensor, scheme.groups[name])
            # vLLM's reload counts elements, and this tensor once for each part of a fused matrix:
            # it goes first, so that a matrix is never taken for complete before its last codes.
            yield f"{name}_shape", torch.tensor(tensor.shape)
            code_name, codes = f"{name}_packed", pack_int4(codes)
        else:
            codes, scales = _PAIRS[scheme.quantization](tensor)
            code_name = name
        if not scales.isfinite().all():
            raise UserError(
                f"tensor {name} holds NaN or infinite values and cannot be quantised to "
                f"{scheme.quantization}: mend the model, or set rollout.quantization=none."
            )
        yield code_name, codes
        yield f"{name}_scale", scales
