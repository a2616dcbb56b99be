"""Refuses FP8 settings that the model, the recipe or the machine cannot take."""

from alp_megatron.config.schema import ALIGNMENT, Config, Fp8Config
from alp_megatron.errors import UserError
from alp_megatron.hf.shape import ModelShape


def check_fp8(config: Config, shape: ModelShape) -> None:
    """Raises UserError naming the key and the mend."""
    fp8 = config.model.fp8
    if fp8 is None:
        return
    _check_layers(config, fp8, shape)
    from alp_megatron.runtime.mesh import device_type

    on_cuda = device_type(config.runtime.device) == "cuda"
    if fp8.param_gather:
        _check_param_gather(config, fp8, on_cuda)
    if on_cuda:
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


# Why a recipe's weights cannot be held in FP8 (by reading Megatron-Core 0.19.2 and Transformer
# Engine). Megatron-Core 0.16.1 set the noise scales to 0 beside mxfp8 weights; 0.19.2 leaves alone
# what is not in FP8, but that takes a Blackwell GPU to try.
_NOT_HELD = {
    "delayed": "the delayed recipe would round the loaded weights with a scale of 1",
    "mxfp8": "Megatron gathers mxfp8 weights through its gradient buffers, which was never tried "
    "with noise scales beside them",
}


def _check_param_gather(config: Config, fp8: Fp8Config, on_cuda: bool) -> None:
    if fp8.recipe in _NOT_HELD:
        raise UserError(
            f"model.fp8.param_gather=true: {_NOT_HELD[fp8.recipe]}; use the tensorwise or "
            "blockwise recipe, or set it to false."
        )
    if not config.trainer.use_distributed_optimizer:
        raise UserError(
            "model.fp8.param_gather=true needs trainer.use_distributed_optimizer=true, which "
            "keeps the weights in fp32: set it."
        )
    if not on_cuda:
        raise UserError(
            "model.fp8.param_gather=true needs a CUDA device; elsewhere every product rounds its "
            "weights anew: set it to false."
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
    """Says why Transformer Engine 2.20 does not run the recipe there (pytorch/quantization.py)."""
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
    sizes = {
        "hidden channels": shape.hidden_size,
        "rows of queries, keys and values": (heads + 2 * groups) * head // tp,
        "channels of attention": heads * head // tp,
    }
    if shape.experts is None:
        return sizes | {"MLP channels": shape.intermediate_size // tp}
    return sizes | {"channels of an expert": shape.experts.moe_intermediate_size}  # never split
