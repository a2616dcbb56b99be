"""Quantised linear layers for vLLM's CPU build, one path for every x86 host.

vLLM picks a CPU kernel by instruction set, and they do not compute the same: oneDNN's int8 product
saturates in 16 bits where there is no VNNI, the fp8 kernels exist for AMX only and leave the
activations in bfloat16 on most of it, int4's is blocked for AVX-512. These compute what vLLM's GPU
kernels do: activations quantised as vLLM does it, exact codes multiplied and summed in float32,
scaled, and rounded once to the engine's dtype. The price is a float32 copy of each weight; no
speed is lost against the unquantised engine on the same host, and none is gained.

All are for vLLM `vllm_patches.VERSION`.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from vllm.model_executor.kernels import linear as registry
from vllm.model_executor.kernels.linear.mixed_precision import MPLinearKernel
from vllm.model_executor.kernels.linear.scaled_mm import (
    Fp8BlockScaledMMLinearKernel,
    FP8ScaledMMLinearKernel,
    Int8ScaledMMLinearKernel,
)
from vllm.platforms import PlatformEnum


class _AnyCpu:
    _codes: Tensor | None = None
    _weight: Tensor | None = None

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        return True, None

    @classmethod
    def can_implement(cls, config) -> tuple[bool, str | None]:
        return True, None


_E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def _float_copy(values: Tensor, kept: Tensor | None) -> Tensor:
    """In the memory of the last reload's, if there was one: fresh pages cost more than the copy."""
    if kept is None or kept.shape != values.shape:
        kept = torch.empty(values.shape, dtype=torch.float32)
    if values.dtype != torch.float8_e4m3fn:
        return kept.copy_(values)
    # By table: torch's own conversion takes four times as long.
    codes = values.reshape(-1).view(torch.uint8).int()
    torch.index_select(_E4M3, 0, codes, out=kept.view(-1))
    return kept


class Int8(_AnyCpu, Int8ScaledMMLinearKernel):
    """W8A8, one weight scale a row. The int8 codes' products are exact, their sums up to 2^24."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        assert self.config.is_channelwise and self.config.input_symmetric
        assert not self.config.is_static_input_scheme
        self._codes = _float_copy(layer.weight, self._codes)  # [n, k]
        self._scales = layer.weight_scale.float().flatten()  # copies: a reload frees the originals

    def apply_weights(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        values = x.float()
        largest = values.abs().amax(-1, keepdim=True)
        codes = (values * (127 / largest).nan_to_num(posinf=0)).round_()
        product = linear(codes, self._codes) * (largest / 127) * self._scales
        return (product if bias is None else product + bias.float()).to(x.dtype)


class Fp8(_AnyCpu, FP8ScaledMMLinearKernel):
    """W8A8 in e4m3, one weight scale a row; the base class quantises the activations."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        self._codes = _float_copy(layer.weight.t(), self._codes)  # vLLM holds [k, n]
        self._scales = layer.weight_scale.float().flatten()

    def apply_scaled_mm(self, *, A, B, out_dtype, As, Bs, bias, output_shape) -> Tensor:
        product = linear(A.float(), self._codes) * As * self._scales
        product = product if bias is None else product + bias.float()
        return product.to(out_dtype).view(*output_shape)


class Fp8Block(_AnyCpu, Fp8BlockScaledMMLinearKernel):
    """W8A8 in e4m3, one weight scale for 128 x 128, one activation scale for 128 channels."""

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        (n, k), (rows, columns) = layer.weight.shape, self.weight_group_shape
        scales = layer.weight_scale.float().repeat_interleave(rows, 0)[:n]
        self._weight = _float_copy(layer.weight, self._weight)
        self._weight *= scales.repeat_interleave(columns, 1)[:, :k]

    def apply_block_scaled_mm(self, A: Tensor, B: Tensor, As: Tensor, Bs: Tensor) -> Tensor:
        columns = self.weight_group_shape.col
        return linear(A.float() * As.repeat_interleave(columns, 1)[:, : A.shape[1]], self._weight)


class Int4(_AnyCpu, MPLinearKernel):
    """W4A16: codes of 4 bits minus 8, one scale for a group of input channels."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        packed, scales, _ = self._get_weight_params(layer)
        pairs = packed.data.view(torch.uint8)  # [n, k / 2], the first code in the low bits
        codes = torch.stack((pairs & 15, pairs >> 4), -1).view(*scales.shape, -1)
        self._weight = _float_copy(codes, self._weight)
        self._weight.sub_(8).mul_(scales.float()[..., None])

    def apply_weights(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = None if bias is None else bias.float()
        return linear(x.float(), self._weight.flatten(1), bias).to(x.dtype)


def use_portable_kernels() -> None:
    """From here on vLLM takes these for every compressed-tensors layer that is built."""
    for kernels, portable in (
        (registry._POSSIBLE_INT8_KERNELS, Int8),
        (registry._POSSIBLE_FP8_KERNELS, Fp8),
        (registry._POSSIBLE_FP8_BLOCK_KERNELS, Fp8Block),
        (registry._POSSIBLE_KERNELS, Int4),
    ):
        kernels[PlatformEnum.CPU] = [portable]
