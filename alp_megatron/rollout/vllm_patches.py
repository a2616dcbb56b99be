"""What vLLM's CPU build needs mended. Each patch says why; all are for exactly VERSION.

To move to another vLLM, check each reason again and change VERSION.
"""

import json
from functools import cache
from pathlib import Path

import torch
import vllm
from torch import nn
from torch.nn import functional
from vllm.model_executor.layers import utils as layer_utils
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
)
from vllm.model_executor.models import ModelRegistry
from vllm.platforms import current_platform

from alp_megatron.errors import UserError
from alp_megatron.rollout.cpu_kernels import use_portable_kernels

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
