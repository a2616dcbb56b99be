"""Quantises a Hugging Face model with NVIDIA ModelOpt into a checkpoint that plain vLLM loads.

    python conversion/quantize.py --hf DIR --out DIR [--format fp8]

also as `alp-megatron quantize`. Rollouts of a training run need none of this: they quantise the
weights on their way to the engine. Codes and scales are the same for both: a test holds ModelOpt's
against those of `weights.quantize`, bit by bit.
"""

import contextlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the repository instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from alp_megatron.config.machine import installed_version
from alp_megatron.config.model_files import Shapes, check_tensors, check_weights
from alp_megatron.config.model_shape import read_model_shape
from alp_megatron.errors import UserError
from alp_megatron.model.hf_files import read_hf_config, stated_dtype
from alp_megatron.weights.quantize.scheme import BLOCK, scheme_of
from conversion.hf_tensors import HfTensors, weight_files
from conversion.output import fingerprint, whole_or_absent

MODELOPT = "0.47.0"
# Our name, which is that of `rollout.quantization` -> ModelOpt's configuration.
FORMATS = {
    "fp8": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "fp8_block": "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
}
# What else ModelOpt makes, and why it is not offered.
NOT_OFFERED = {
    "int8": "vLLM does not read ModelOpt's int8 checkpoints",
    "int4": "vLLM does not read ModelOpt's int4 checkpoints",
    "mxfp8": "ModelOpt makes it on a GPU only",
    "nvfp4": "ModelOpt makes it on a GPU only",
}


def quantize(model_dir: Path, out: Path, name: str) -> None:
    """Write the quantised model to `out`; tokenizer and generation config are kept.

    The linear layers of the decoder become float8_e4m3fn codes; `code x scale` is the weight, with
    one float32 scale for each output channel (fp8) or each 128 x 128 weights (fp8_block). The
    engine gives the activations scales of their own as it runs, so no data is needed. Embedding,
    output layer, norms and biases stay as they are, and so do layers that the format cannot hold.
    Weights are read and quantised one at a time and wait for their file, of at most 4 GiB, to be
    full: memory is needed for such a file and a few weights, not for the model.

    Raises UserError: the input is not a whole, supported and finite model of dense layers; the
    format is not one of FORMATS or holds none of the model's layers; ModelOpt is missing; the
    output exists or cannot be made.
    """
    _check_format(name)
    shape = read_model_shape(model_dir)
    shapes = check_weights(model_dir)
    check_tensors(model_dir, shapes, shape)
    if shape.experts is not None:
        raise UserError(
            f"{model_dir} is a mixture of experts, which vLLM does not read from ModelOpt's "
            f"{name} checkpoints: use rollout.quantization, which quantises as it syncs."
        )
    chosen, others = _linear_weights(shapes, name)
    _check_modelopt()
    tensors = HfTensors(model_dir)
    nbytes = sum(_nbytes(tensors, n, name if n in chosen else "") for n in tensors.names())
    source = fingerprint([model_dir / "config.json", *weight_files(model_dir)])
    with whole_or_absent(out, {"source": source, "format": name}, nbytes) as partial, _quiet():
        _write(tensors, partial, name, chosen, others)
    print(f"{out}: {len(chosen)} of {len(chosen) + len(others)} linear weights in {name}")


def _check_format(name: str) -> None:
    if name not in FORMATS:
        reason = f" ({NOT_OFFERED[name]})" if name in NOT_OFFERED else ""
        raise UserError(f"--format {name} is not offered{reason}: use {' or '.join(FORMATS)}.")


def _check_modelopt() -> None:
    found = installed_version("nvidia-modelopt")
    if found != MODELOPT:
        raise UserError(
            f"quantising needs nvidia-modelopt {MODELOPT}, found {found or 'none'}: "
            f"run `pip install nvidia-modelopt=={MODELOPT}`."
        )


def _linear_weights(shapes: Shapes, name: str) -> tuple[set[str], set[str]]:
    """The decoder's linear weights that the format holds, and those that it does not."""
    linear = set(scheme_of(shapes, "fp8", ()).groups)
    if name == "fp8":
        return linear, set()
    try:
        fit = set(scheme_of(shapes, name, ()).groups)
    except UserError:  # speaks of rollout.quantization
        fit = set()
    # vLLM's reader of this format wants whole blocks of input channels.
    fit = {weight for weight in fit if shapes[weight][1] % BLOCK == 0}
    if not fit:
        raise UserError(
            f"--format {name} holds no layer of this model, whose sizes are no multiples of "
            f"{BLOCK}: use fp8."
        )
    return fit, linear - fit


def _nbytes(tensors: HfTensors, weight: str, name: str) -> int:
    """Of what is written for a tensor; `name` is '' for one that is kept."""
    if not name:
        return tensors.nbytes(weight)
    n, k = shape = tensors.shape(weight)
    scales = n if name == "fp8" else -(-n // BLOCK) * -(-k // BLOCK)
    return prod(shape) + 4 * scales


def _write(
    tensors: HfTensors, directory: Path, name: str, chosen: set[str], others: set[str]
) -> None:
    from modelopt.torch.export.convert_hf_config import convert_hf_quant_config_format

    from alp_megatron.weights.save_hf import write_model

    excluded = {weight.removesuffix(".weight") for weight in others} | {"lm_head"}
    details = {
        "producer": {"name": "modelopt", "version": MODELOPT},
        "quantization": {
            "quant_algo": _algorithm(name),
            "kv_cache_quant_algo": None,
            "exclude_modules": sorted(excluded),
        },
    }
    (directory / "hf_quant_config.json").write_text(json.dumps(details, indent=2) + "\n")
    dtype = stated_dtype(read_hf_config(tensors.model_dir)) or "bfloat16"
    write_model(
        _stream(tensors, name, chosen),
        tensors.model_dir,
        directory,
        getattr(torch, dtype),
        quantization_config=convert_hf_quant_config_format(details),
    )


def _stream(tensors: HfTensors, name: str, chosen: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for weight in tensors.names():
        tensor = tensors.rows(weight)
        if weight not in chosen:
            yield weight, tensor
            continue
        codes, scales = modelopt_quantize(tensor, name)
        yield weight, codes
        yield weight + "_scale", scales


def modelopt_quantize(weight: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [n, k] -> ModelOpt's codes float8_e4m3fn [n, k] and scales float32: [n] for fp8,
    [ceil(n/128), 1, ceil(k/128), 1] for fp8_block."""
    from modelopt.torch.export import quant_utils

    layer = _quantised_layer(weight, name)
    scales = quant_utils.get_weight_scaling_factor(layer)
    codes = quant_utils.to_quantized_weight(
        weight,
        scales,
        quant_utils.get_quantization_format(layer),
        block_size=quant_utils.get_weight_block_size(layer),
    )
    if name == "fp8_block":  # that of a single block comes without its dimensions
        n, k = weight.shape
        scales = scales.view(-(-n // BLOCK), 1, -(-k // BLOCK), 1)
    return codes, scales


def _algorithm(name: str) -> str:
    """ModelOpt's name for the format, as its checkpoints say it."""
    from modelopt.torch.export.quant_utils import get_quant_config

    model = torch.nn.Sequential(_quantised_layer(torch.ones(BLOCK, BLOCK), name))
    return get_quant_config(model)["quantization"]["quant_algo"]


def _quantised_layer(weight: torch.Tensor, name: str) -> Any:
    import modelopt.torch.quantization as mtq

    n, k = weight.shape
    layer = torch.nn.Linear(k, n, bias=False, device="meta")
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    model = torch.nn.Sequential(layer)
    return mtq.quantize(model, getattr(mtq, FORMATS[name]), forward_loop=None)[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of ModelOpt and of what it imports; what goes wrong is raised.

    Beside them are vLLM's on a Triton and torch's on a CUDA that have no GPU to work for.
    """
    loud = ("torch._library.triton", "torch.utils.cpp_extension", "vllm.triton_utils.importing")
    for name in ("modelopt", *loud):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    from alp_megatron.cli import main

    sys.exit(main(["quantize", *sys.argv[1:]]))
