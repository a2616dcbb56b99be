"""How much of a layer's noise is still there after its first FP8 rounding."""

import torch
from megatron.core import parallel_state
from torch import Tensor
from torch.nn.functional import rms_norm

from alp_megatron.fp8.amax import INPUT, tensor_amax
from alp_megatron.fp8.blocks import row_scales
from alp_megatron.fp8.casts import E4M3, encode
from alp_megatron.fp8.scales import BLOCK_SCALES, float32_scale
from alp_megatron.perturbation.plan import NoisePlan


@torch.no_grad()
def count_surviving(layer, clean: Tensor, noisy: Tensor, plan: NoisePlan) -> None:
    """Counts, in the plan, the elements of the first linear layer's input whose E4M3 code the
    noise has changed.

    That input is the norm of the hidden states [s, b, h], before and after the noise. Both are
    rounded with the scale that the noisy one gets: a code changes because its element did, not
    because a scale moved. Rows of padding are left out.
    """
    rows = plan.sample_ids >= 0
    before, after = (_normalised(layer, h).flatten(0, -2)[rows].float() for h in (clean, noisy))
    scale = _scale(layer, after)
    codes = [encode(operand, scale, E4M3).view(torch.uint8) for operand in (before, after)]
    plan.fp8_changed += (codes[0] != codes[1]).sum()
    plan.fp8_total += codes[0].numel()


def _normalised(layer, hidden_states: Tensor) -> Tensor:
    """By the layer's input norm, which Transformer Engine's spec keeps inside of linear_qkv."""
    weight = getattr(layer.self_attention.linear_qkv, "layer_norm_weight", None)
    if weight is None:
        return layer.input_layernorm(hidden_states)
    return rms_norm(hidden_states, weight.shape, weight, layer.config.layernorm_epsilon)


def _scale(layer, operand: Tensor) -> Tensor:
    """Of linear_qkv's input; on CUDA the delayed recipe's is that of the present amax."""
    emulated = layer.config.emulated_fp8
    recipe = emulated.recipe if emulated is not None else layer.config.fp8_recipe
    if recipe in BLOCK_SCALES:
        size, rule = BLOCK_SCALES[recipe]
        return row_scales(operand, size, E4M3, rule)
    (amax,) = tensor_amax(operand, group=parallel_state.get_tensor_model_parallel_group())
    history = getattr(layer.self_attention.linear_qkv, "fp8_history", None)
    return float32_scale(amax, E4M3) if history is None else history.scale(INPUT, amax, E4M3)
