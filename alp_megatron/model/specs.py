"""Specifies the perturbed layer: Transformer Engine on CUDA, plain torch elsewhere."""

from functools import partial

import torch
from megatron.core import parallel_state
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
    get_mlp_module_spec_for_backend,
)
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import Tensor

from alp_megatron.fp8.linear import Fp8ColumnParallelLinear, Fp8RowParallelLinear
from alp_megatron.fp8.recipes import current_pass
from alp_megatron.model.attention import PackedAttention
from alp_megatron.model.transformer_config import PolicyConfig
from alp_megatron.perturbation.layer import PerturbedTransformerLayer


class RMSNorm(torch.nn.RMSNorm):
    """Marks torch's RMSNorm for Megatron to sum its gradient over TP if sequences are split.

    Megatron's own wrapper around torch's norm refuses sequence parallelism.
    """

    def __init__(self, config, hidden_size: int, eps: float = 1e-5, **_):
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel


class Fp8ExpertsNorm(RMSNorm):
    """Norms [s, b, h] before router and experts; inside an `fp8_pass` padding leaves it as 0.

    Behind the router nobody knows which rows were padding, and what fills up a row must not move
    the scale of an expert's tokens.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        normalised, run = super().forward(hidden_states), current_pass()
        if run is None:
            return normalised
        # A model with experts has sequence parallelism wherever it has TP: a rank has its part.
        count = len(normalised)
        start = parallel_state.get_tensor_model_parallel_rank() * count
        return normalised * run.tokens[start : start + count, :, None]


def block_spec(config: PolicyConfig, layers_of_this_stage: int) -> TransformerBlockSubmodules:
    """Returns the decoder block of one pipeline stage."""
    kind = {"num_experts": config.num_moe_experts, "qk_layernorm": config.qk_layernorm}
    if torch.cuda.is_available():
        from megatron.core.extensions.transformer_engine import TENorm

        layer, final_norm = get_gpt_layer_with_transformer_engine_spec(**kind), TENorm
    else:
        layer, final_norm = _local_layer_spec(**kind), RMSNorm
        if config.emulated_fp8 is not None:
            _use_emulated_fp8(layer, config.num_moe_experts)
    layer.module = PerturbedTransformerLayer
    return TransformerBlockSubmodules(
        layer_specs=[layer] * layers_of_this_stage, layer_norm=final_norm
    )


def _local_layer_spec(*, qk_layernorm: bool, **kind) -> ModuleSpec:
    layer = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=qk_layernorm, **kind)
    layer.submodules.input_layernorm = RMSNorm
    layer.submodules.pre_mlp_layernorm = RMSNorm
    attention = layer.submodules.self_attention.submodules
    attention.core_attention = PackedAttention
    if qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    return layer


class _EmulatedFp8(LocalSpecProvider):
    """Megatron's choice of modules, but every linear layer rounds to FP8."""

    def column_parallel_linear(self) -> type:
        return Fp8ColumnParallelLinear

    def row_parallel_linear(self) -> type:
        return Fp8RowParallelLinear

    def grouped_mlp_modules(self, moe_use_grouped_gemm: bool):
        linears = MLPSubmodules(linear_fc1=Fp8ColumnParallelLinear, linear_fc2=Fp8RowParallelLinear)
        return partial(SequentialMLP, submodules=linears)


def _use_emulated_fp8(layer: ModuleSpec, experts: int | None) -> None:
    """The linear layers of attention, and of the MLP or of every expert; attention's core, norms,
    router, embedding and head stay as they are."""
    attention = layer.submodules.self_attention.submodules
    attention.linear_qkv, attention.linear_proj = Fp8ColumnParallelLinear, Fp8RowParallelLinear
    layer.submodules.mlp = get_mlp_module_spec_for_backend(_EmulatedFp8(), num_experts=experts)
    if experts is not None:
        layer.submodules.pre_mlp_layernorm = Fp8ExpertsNorm
