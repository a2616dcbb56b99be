"""What happens to the export stream on its way to an engine: quantisation, or noise on purpose."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from alp_megatron.errors import UserError
from alp_megatron.perturbation import NoiseKey
from alp_megatron.perturbation.noise import gaussian
from alp_megatron.weights.quantize.codes import (
    by_pieces,
    pack_int4,
    quantize_fp8,
    quantize_fp8_blocks,
    quantize_int4,
    quantize_int8,
)
from alp_megatron.weights.quantize.scheme import BLOCK, Scheme, is_linear


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


@dataclass(frozen=True)
class WeightNoise:
    """W + scale * rms(W) * z in every linear layer of the decoder, as a quantiser would err.

    z ~ N(0, 1) is drawn anew for each version, by the counter-based generator of all noise: its
    bits depend on seed, version, tensor, row and column, and not on the layout.
    """

    scale: float
    seed: int

    def added(
        self, stream: Iterable[tuple[str, Tensor]], version: int
    ) -> Iterator[tuple[str, Tensor]]:
        """(HF name, whole tensor [n, k]) -> the same with noise, in the tensor's dtype."""
        key = NoiseKey(self.seed, version, 0)
        for name, tensor in stream:
            if is_linear(name):
                weight = tensor.float()
                z = self._normals(key, name, weight)
                tensor = (weight + self.scale * weight.square().mean().sqrt() * z).to(tensor.dtype)
            yield name, tensor

    def _normals(self, key: NoiseKey, name: str, weight: Tensor) -> Tensor:
        # Far above the sample ids, which count from 0: no response's noise has this counter.
        ident = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]) | 2**56
        rows = torch.arange(len(weight), device=weight.device)
        return gaussian(key, 0, torch.full_like(rows, ident), rows, weight.shape[1])
