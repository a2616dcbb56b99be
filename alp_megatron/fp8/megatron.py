"""`model.fp8` as Megatron's settings."""

import torch

from alp_megatron.config.schema import Fp8Config
from alp_megatron.fp8.alignment import ALIGNMENT


def fp8_settings(fp8: Fp8Config | None) -> dict:
    """Fields of PolicyConfig: Megatron's own on CUDA, which its Transformer Engine layers obey,
    elsewhere the emulation's."""
    if fp8 is None:
        return {}
    start, end = fp8.num_layers_at_start_in_bf16, fp8.num_layers_at_end_in_bf16
    layers = dict(
        first_last_layers_bf16=start + end > 0,
        num_layers_at_start_in_bf16=start,
        num_layers_at_end_in_bf16=end,
    )
    if not torch.cuda.is_available():
        return layers | {"emulated_fp8": fp8}
    return layers | dict(
        fp8=fp8.format,
        fp8_recipe=fp8.recipe,
        fp8_param=fp8.param_gather,
        fp8_margin=fp8.margin,
        fp8_amax_history_len=fp8.amax_history_len,
        fp8_amax_compute_algo=fp8.amax_compute_algo,
    )


def token_multiple(fp8: Fp8Config | None) -> int:
    """What the number of tokens of a rank's rows must be a multiple of; the emulation takes any."""
    return ALIGNMENT[fp8.recipe] if fp8 is not None and torch.cuda.is_available() else 1
