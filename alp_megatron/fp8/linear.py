"""Emulates FP8 operands in Megatron's column- and row-parallel linear layers."""

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import rms_norm

from alp_megatron.config.schema import Fp8Config
from alp_megatron.fp8.recipes import (
    INPUT,
    AmaxHistory,
    AmaxMeter,
    Fp8Pass,
    PerTensor,
    Recipe,
    blockwise,
    current_pass,
    mxfp8,
    tensor_amax,
)
from alp_megatron.fp8.rounding import BLOCK_SCALES, E4M3, E5M2, encode, float32_scale, row_scales

HISTORY = "fp8_history"  # in the names of the delayed recipe's buffers


class _RoundedMatmul(torch.autograd.Function):
    """Computes x w^T, its products accumulated in fp32, the results in the operands' own types."""

    @staticmethod
    def forward(ctx, x, w, recipe: Recipe, run: Fp8Pass, tokens: Tensor | None):
        operands = _rows(x, tokens), w.float()
        (rounded_x, rounded_w), scales = recipe.product(*operands, run)
        ctx.save_for_backward(x, w)
        ctx.recipe, ctx.run, ctx.tokens, ctx.scales = recipe, run, tokens, scales
        return (rounded_x @ rounded_w.t()).to(x.dtype).view(*x.shape[:-1], w.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        (g, rounded_w), (g_of_weight, rounded_x) = ctx.recipe.gradients(
            _rows(grad, ctx.tokens), _rows(x, ctx.tokens), w.float(), ctx.scales, ctx.run
        )
        grad_x = (g @ rounded_w).to(x.dtype).view_as(x)
        grad_w = (g_of_weight.t() @ rounded_x).to(w.dtype)
        return grad_x, grad_w, None, None, None


def _rows(tensor: Tensor, tokens: Tensor | None) -> Tensor:
    """Returns fp32 [t, c] of [t, 1, c], zero where `tokens` is False; of an expert's [t, c] all."""
    rows = tensor.flatten(0, -2).float()
    return rows if tokens is None else rows * tokens


class EmulatedFp8:
    """Rounds the operands of Megatron's layer inside an `fp8_pass`; outside it is Megatron's."""

    def __init__(self, *args, config, **kwargs):
        super().__init__(*args, config=config, **kwargs)
        self.fp8_meter = AmaxMeter()
        settings = config.emulated_fp8
        self.fp8_history = (
            AmaxHistory(settings.amax_history_len, settings.amax_compute_algo, settings.margin)
            if settings.recipe == "delayed"
            else None
        )
        self.fp8_recipe = _recipe(self, settings)

    def _forward_impl(self, input, weight, *args, bias=None, **kwargs):
        run = current_pass()
        if run is None:
            return super()._forward_impl(input, weight, *args, bias=bias, **kwargs)
        # Megatron's layer would make these exchanges around its own product.
        if kwargs["sequence_parallel"]:
            input = gather_from_sequence_parallel_region(
                input, tensor_parallel_output_grad=True, group=self.tp_group
            )
        elif kwargs["allreduce_dgrad"]:
            input = copy_to_tensor_model_parallel_region(input, group=self.tp_group)
        # What reaches an expert is in an order of its own, padding already zero: `fp8.experts`.
        tokens = None if self.is_expert else run.tokens
        output = _RoundedMatmul.apply(input, weight, self.fp8_recipe, run, tokens)
        return output if bias is None else output + bias


class Fp8ColumnParallelLinear(EmulatedFp8, ColumnParallelLinear):
    """Computes y = x w^T with the rows of w split over TP."""


class Fp8RowParallelLinear(EmulatedFp8, RowParallelLinear):
    """Computes y = x w^T with the columns of w split over TP."""


def _recipe(layer, settings: Fp8Config) -> Recipe:
    gradient = E5M2 if settings.format == "hybrid" else E4M3
    if settings.recipe == "blockwise":
        return blockwise(gradient, layer.fp8_meter)
    if settings.recipe == "mxfp8":
        return mxfp8(gradient, layer.fp8_meter)
    if layer.is_expert:  # those that hold this expert, each with some of its tokens
        group = parallel_state.get_expert_data_parallel_group()
    elif settings.recipe == "delayed":
        group = parallel_state.get_amax_reduction_group(with_context_parallel=True)
    else:
        group = layer.tp_group
    return PerTensor(layer, gradient, group, layer.fp8_meter, layer.fp8_history)


@torch.no_grad()
def count_surviving(layer, clean: Tensor, noisy: Tensor, noise) -> None:
    """Counts the elements of the first linear layer's input whose E4M3 code the noise changed.

    That input is the norm of the hidden states [s, b, h], before and after the noise. Both are
    rounded with the scale that the noisy one gets: a code changes because its element did, not
    because a scale moved. Rows of padding are left out.

    noise: the NoiseRows of the micro-batch, which has the counts.
    """
    rows = noise.sample_ids >= 0
    before, after = (_normalised(layer, h).flatten(0, -2)[rows].float() for h in (clean, noisy))
    scale = _scale(layer, after)
    codes = [encode(operand, scale, E4M3).view(torch.uint8) for operand in (before, after)]
    noise.counts.add("fp8_changed", (codes[0] != codes[1]).sum())
    noise.counts.add("fp8_total", codes[0].numel())


def _normalised(layer, hidden_states: Tensor) -> Tensor:
    """Applies the layer's input norm, which Transformer Engine's spec keeps inside linear_qkv."""
    weight = getattr(layer.self_attention.linear_qkv, "layer_norm_weight", None)
    if weight is None:
        return layer.input_layernorm(hidden_states)
    return rms_norm(hidden_states, weight.shape, weight, layer.config.layernorm_epsilon)


def _scale(layer, operand: Tensor) -> Tensor:
    """Returns the scale of linear_qkv's input; on CUDA the delayed recipe's is of its amax now."""
    emulated = layer.config.emulated_fp8
    recipe = emulated.recipe if emulated is not None else layer.config.fp8_recipe
    if recipe in BLOCK_SCALES:
        size, rule = BLOCK_SCALES[recipe]
        return row_scales(operand, size, E4M3, rule)
    (amax,) = tensor_amax(operand, group=parallel_state.get_tensor_model_parallel_group())
    history = getattr(layer.self_attention.linear_qkv, "fp8_history", None)
    return float32_scale(amax, E4M3) if history is None else history.scale(INPUT, amax, E4M3)
