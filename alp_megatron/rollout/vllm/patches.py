"""What vLLM's CPU build needs mended. Each patch says why; all are for exactly VERSION.

To move to another vLLM, check each reason again and change VERSION.
"""

import json
from functools import cache
from pathlib import Path

import torch
import vllm
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import linear
from vllm.model_executor.kernels import linear as registry
from vllm.model_executor.kernels.linear.mixed_precision import MPLinearKernel
from vllm.model_executor.kernels.linear.scaled_mm import (
    Fp8BlockScaledMMLinearKernel,
    FP8ScaledMMLinearKernel,
    Int8ScaledMMLinearKernel,
)
from vllm.model_executor.layers import utils as layer_utils
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
)
from vllm.model_executor.models import ModelRegistry
from vllm.platforms import PlatformEnum, current_platform

from alp_megatron.errors import UserError

# Quantised linear layers for vLLM's CPU build, one path for every x86 host.
#
# vLLM picks a CPU kernel by instruction set, and they do not compute the same: oneDNN's int8
# product saturates in 16 bits where there is no VNNI, the fp8 kernels exist for AMX only and leave
# the activations in bfloat16 on most of it, int4's is blocked for AVX-512. These compute what
# vLLM's GPU kernels do: activations quantised as vLLM does it, exact codes multiplied and summed in
# float32, scaled, and rounded once to the engine's dtype. The price is a float32 copy of each
# weight; no speed is lost against the unquantised engine on the same host, and none is gained.
#
# All are for vLLM `VERSION` below.


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


VERSION = "0.32.0"


def check_version() -> None:
    if vllm.__version__ != VERSION:
        raise UserError(
            f"vLLM {vllm.__version__} is installed, rollouts need {VERSION}: "
            "remove .venv and set up again."
        )


def inspect_model_in_process(model_dir: str) -> None:
    """vLLM imports the model's class in a second process to ask it what it supports, lest CUDA
    start before a fork. This process never forks, and the detour costs 15 s of the first start.
    """
    architectures = json.loads((Path(model_dir) / "config.json").read_text())["architectures"]
    for architecture in architectures:
        lazy = ModelRegistry.models.get(architecture)
        if lazy is not None:
            ModelRegistry.register_model(architecture, lazy.load_model_cls())


def request_amx() -> None:
    """vLLM's AMX kernels do not ask Linux for the tile registers: without, they end in SIGILL."""
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


def multiply_bfloat16_as_float32() -> None:
    """Without AVX-512, oneDNN has no bfloat16 matrix product and torch's fall-back is a slow loop
    (15 x slower). Products of bfloat16 numbers summed in float32 and rounded once at the end
    are what the hardware's bfloat16 product gives as well; the price is a float32 copy of each
    weight.
    """
    if torch.cpu._is_avx512_supported():
        return
    original = layer_utils.dispatch_cpu_unquantized_gemm

    def dispatch(layer: nn.Module, remove_weight: bool) -> None:
        plain = not layer.weight.is_meta and layer.weight.ndim == 2
        if not (plain and layer.weight.dtype == torch.bfloat16):
            original(layer, remove_weight)
            return
        # Kept from reload to reload: fresh pages cost more than the copy.
        weight = layer.__dict__.get("float_weight")
        if weight is None or weight.shape != layer.weight.shape:
            weight = layer.__dict__["float_weight"] = layer.weight.detach().float()
        else:
            weight.copy_(layer.weight.detach())

        def linear(x, _weight, bias):
            bias = None if bias is None else bias.float()
            return functional.linear(x.float(), weight, bias).to(x.dtype)

        layer.cpu_linear = linear
        if remove_weight:
            empty = torch.empty(0, dtype=layer.weight.dtype)
            layer.weight = nn.Parameter(empty, requires_grad=False)

    layer_utils.dispatch_cpu_unquantized_gemm = dispatch


def refresh_tied_head(model: nn.Module) -> None:
    """On CPU an output layer multiplies with a packed copy of its weight, which vLLM's reload
    does not renew where the weight is the embedding's. To be called after each reload.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and isinstance(
            module.quant_method, UnquantizedEmbeddingMethod
        ):
            module.quant_method.process_weights_after_loading(module)


def repack_experts() -> None:
    """On CPU the experts lie packed for their kernel, and vLLM packs them at the first load only:
    after a reload it would read plain weights as packed ones, and compute nonsense.
    """
    original = UnquantizedFusedMoEMethod._setup_kernel

    def setup_kernel(self, layer: nn.Module, w13: torch.Tensor, w2: torch.Tensor) -> None:
        reload = self.moe_kernel is not None
        original(self, layer, w13, w2)
        if reload:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    UnquantizedFusedMoEMethod._setup_kernel = setup_kernel


def apply_patches(model_dir: str) -> None:
    check_version()
    inspect_model_in_process(model_dir)
    if current_platform.is_cpu():
        _mend_cpu_build()


@cache  # packing what is packed already would spoil it
def _mend_cpu_build() -> None:
    request_amx()
    multiply_bfloat16_as_float32()
    repack_experts()
    use_portable_kernels()
