"""The quantised stream as a model directory that a plain vLLM loads."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from alp_megatron.weights.quantize.config import quantization_config
from alp_megatron.weights.quantize.scheme import Scheme
from alp_megatron.weights.quantize.stream import quantized
from alp_megatron.weights.save_hf import write_model


def save_quantized(
    stream: Iterable[tuple[str, Tensor]],
    scheme: Scheme,
    source_dir: str | Path,
    out_dir: str | Path,
    dtype: torch.dtype,
) -> None:
    """Write what a live sync would send: safetensors, and config.json with quantization_config.

    Args:
        stream: (Hugging Face name, whole tensor in `dtype`) of the unquantised model.
        source_dir: the model whose config.json and tokenizer are taken.
        out_dir: appears when it is whole; must not exist.

    Raises UserError naming a tensor that cannot be quantised.
    """
    out_dir = Path(out_dir)
    partial = out_dir.with_name(f".{out_dir.name}.partial")
    try:
        write_model(
            quantized(stream, scheme),
            Path(source_dir),
            partial,
            dtype,
            quantization_config=quantization_config(scheme),
        )
        partial.rename(out_dir)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
