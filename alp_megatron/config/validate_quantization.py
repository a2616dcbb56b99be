"""Refuses a quantisation that the model's shapes or the machine's engine cannot take."""

from alp_megatron.config.model_files import Shapes
from alp_megatron.config.model_shape import ModelShape
from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.weights.quantize.scheme import UNQUANTIZED, Scheme, scheme_of


def check_quantization(config: Config, weights: Shapes, shape: ModelShape) -> None:
    """Raises UserError naming the key and the mend. `weights`: shapes of the checkpoint."""
    rollout = config.rollout
    quantized = rollout.quantization != UNQUANTIZED
    if not quantized and rollout.kv_cache_dtype == "auto":
        return
    on_cpu = _device(config) == "cpu"
    if rollout.kv_cache_dtype != "auto" and on_cpu:
        _check_cpu_kv_cache(shape)
    if not quantized:
        return
    scheme = scheme_of(weights, rollout.quantization, tuple(rollout.quantization_ignore))
    _check_fit(scheme)
    if on_cpu and any(".experts." in name for name in scheme.groups):
        raise UserError(
            f"rollout.quantization={rollout.quantization}: vLLM has no quantised experts on a CPU: "
            "set rollout.quantization_ignore=['*.experts.*']."
        )
    if not on_cpu and rollout.dtype == "float32":
        raise UserError(
            f"rollout.quantization={rollout.quantization}: vLLM's GPU kernels for it do not give "
            "float32: set rollout.dtype=bfloat16."
        )


def _check_fit(scheme: Scheme) -> None:
    if not scheme.unfit:
        return
    name, why = next(iter(scheme.unfit.items()))
    modules = sorted({f"*.{unfit.split('.')[-2]}" for unfit in scheme.unfit})
    raise UserError(
        f"rollout.quantization={scheme.quantization} cannot hold {name} ({why}): add {modules} to "
        "rollout.quantization_ignore, or use int8 or fp8."
    )


def _check_cpu_kv_cache(shape: ModelShape) -> None:
    import torch

    if not torch.cpu._is_avx512_supported():
        raise UserError(
            "rollout.kv_cache_dtype=fp8 needs a GPU or a CPU with AVX-512, which this machine "
            "lacks: set it to auto."
        )
    if shape.head_dim % 32:
        raise UserError(
            f"rollout.kv_cache_dtype=fp8 needs heads of a multiple of 32 on a CPU, the model's "
            f"have {shape.head_dim}: set it to auto."
        )


def _device(config: Config) -> str:
    from alp_megatron.runtime.device import device_type  # imports torch, which takes seconds

    return device_type(config.runtime.device)
