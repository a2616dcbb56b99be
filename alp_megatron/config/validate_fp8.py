"""Refuses FP8 settings that the model, the recipe or the machine cannot take."""

from alp_megatron.config.model_shape import ModelShape
from alp_megatron.config.schema import Config, Fp8Config
from alp_megatron.errors import UserError
from alp_megatron.fp8.alignment import ALIGNMENT


def check_fp8(config: Config, shape: ModelShape) -> None:
    """Raises UserError naming the key and the mend."""
    fp8 = config.model.fp8
    if fp8 is None:
        return
    if shape.experts is not None:
        raise UserError("model.fp8 is for models without experts: set model.fp8=null for this one.")
    _check_layers(config, fp8, shape)
    from alp_megatron.runtime.device import device_type  # imports torch, which takes seconds

    if device_type(config.runtime.device) == "cuda":
        _check_cuda(config, fp8, shape)


def _check_layers(config: Config, fp8: Fp8Config, shape: ModelShape) -> None:
    stage = shape.num_hidden_layers // config.model.pipeline_model_parallel_size
    for name in ("num_layers_at_start_in_bf16", "num_layers_at_end_in_bf16"):
        count = getattr(fp8, name)
        if count and fp8.recipe == "delayed":
            raise UserError(
                f"model.fp8.{name}={count}: the delayed recipe has no layers in bf16; set it to 0 "
                "or use another recipe."
            )
        if count > stage:
            raise UserError(
                f"model.fp8.{name}={count} is more than the {stage} layers of a pipeline stage: "
                "use at most that."
            )


def _check_cuda(config: Config, fp8: Fp8Config, shape: ModelShape) -> None:
    import torch

    reason = unsupported(fp8.recipe, torch.cuda.get_device_capability(), torch.version.cuda or "0")
    if reason is not None:
        raise UserError(f"model.fp8.recipe={fp8.recipe} {reason}")
    if config.model.params_dtype != "bfloat16":
        raise UserError(
            "model.fp8 on CUDA needs model.params_dtype=bfloat16: the layers' inputs and outputs "
            "are in it; set it."
        )
    multiple = ALIGNMENT[fp8.recipe]
    for what, size in _shard_sizes(config, shape).items():
        if size % multiple:
            raise UserError(
                f"model.fp8.recipe={fp8.recipe} needs multiples of {multiple}, but a "
                f"tensor-parallel rank has {size} {what}: lower "
                "model.tensor_model_parallel_size or use another recipe."
            )


def unsupported(recipe: str, capability: tuple[int, int], cuda: str) -> str | None:
    """Why Transformer Engine 2.11 does not run the recipe there (pytorch/quantization.py)."""
    device = f"this device has {capability[0]}.{capability[1]}: use another recipe or device."
    if capability < (8, 9):
        return f"needs compute capability 8.9, {device}"
    if recipe == "mxfp8" and not (10, 0) <= capability < (12, 0):
        return f"needs compute capability 10.x, {device}"
    if recipe == "blockwise":
        if capability < (9, 0):
            return f"needs compute capability 9.0, {device}"
        if tuple(int(part) for part in cuda.split(".")[:2]) < (12, 9):
            return f"needs CUDA 12.9, torch was built with {cuda}: use another recipe or torch."
    return None


def _shard_sizes(config: Config, shape: ModelShape) -> dict[str, int]:
    tp = config.model.tensor_model_parallel_size
    heads, groups, head = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    return {
        "hidden channels": shape.hidden_size,
        "rows of queries, keys and values": (heads + 2 * groups) * head // tp,
        "channels of attention": heads * head // tp,
        "MLP channels": shape.intermediate_size // tp,
    }
