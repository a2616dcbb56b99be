"""A Hugging Face directory into this rank's chunks, and the export stream into a directory."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.fp8_utils import is_float8tensor
from safetensors.torch import save_file

from alp_megatron.errors import UserError
from alp_megatron.hf.files import copy_model_files, read_hf_config, stated_dtype
from alp_megatron.hf.tensors import INDEX, SINGLE, HfTensors
from alp_megatron.weights.export import WeightExport
from alp_megatron.weights.mapping import merge, rules_of_chunk, shard
from alp_megatron.weights.transport.buckets import bounded


def load_hf(chunks: list, model_type: str, tensors: HfTensors) -> None:
    """Copies the tensors into the chunks' parameters. `s_l` is left at its initial 0.

    Raises UserError naming the tensor if one is missing or has another shape.
    """
    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    for chunk in chunks:
        rules = rules_of_chunk(chunk, model_type)
        groups = chunk.config.num_query_groups
        for name, parameter in chunk.named_parameters():
            if name not in rules:
                continue
            layout, hf_names, expert = rules[name]
            try:
                parts = [tensors.tensor(n) for n in hf_names]
                part = merge(layout, parts, groups)
                if not expert:
                    part = shard(layout, part, rank, size)
            except RuntimeError:
                part = torch.empty(0)
            if part.shape != parameter.shape:
                raise UserError(
                    f"{tensors.model_dir}: {' + '.join(hf_names)} have shapes "
                    f"{[tuple(p.shape) for p in parts]}, which its config.json contradicts; "
                    "copy the model again."
                )
            with torch.no_grad():
                parameter.copy_(part)
                if is_float8tensor(parameter):  # the optimizer's fp32 copy is made of this one
                    parameter.get_high_precision_init_val().copy_(part)


MAX_SHARD_BYTES = 4 * 2**30


def save_hf(
    export: WeightExport, source_dir: str | Path, out_dir: Path, rollout_dtype: torch.dtype
) -> None:
    """Writes the policy as a Hugging Face model to `out_dir`. Collective.

    The tokenizer and generation config are the source's.
    """
    source_dir = Path(source_dir)
    dtype = export_dtype(source_dir, rollout_dtype)
    stream = export.stream(dtype)
    if dist.get_rank() != 0:
        for _ in stream:
            pass
        return
    write_model(stream, source_dir, out_dir, dtype)


def export_dtype(source_dir: Path, rollout_dtype: torch.dtype) -> torch.dtype:
    """Returns the type of the source's config, or the engine's where it is wider: an engine started
    from the export then holds what the running one holds.
    """
    own = getattr(torch, stated_dtype(read_hf_config(source_dir)) or "bfloat16")
    return torch.promote_types(own, rollout_dtype)


def write_model(
    stream: Iterable[tuple[str, torch.Tensor]],
    source_dir: Path,
    out_dir: Path,
    dtype: torch.dtype,
    **config: Any,
) -> None:
    """Makes a directory of the stream's tensors with the source's config.json, changed to `dtype`
    and by `config`, and its tokenizer and generation config.
    """
    hf = read_hf_config(source_dir) | config
    out_dir.mkdir(parents=True, exist_ok=True)
    copy_model_files(source_dir, out_dir)
    hf.pop("torch_dtype", None)
    hf["dtype"] = str(dtype).removeprefix("torch.")
    (out_dir / "config.json").write_text(json.dumps(hf, indent=2) + "\n")
    _write_shards(stream, out_dir)


def _write_shards(stream: Iterable[tuple[str, torch.Tensor]], out_dir: Path) -> None:
    # Copies: the stream yields views of parameters that the next update overwrites.
    copies = ((name, tensor.detach().cpu().clone()) for name, tensor in stream)
    shards: list[list[str]] = []
    total = 0
    for held in bounded(copies, lambda named: named[1].nbytes, MAX_SHARD_BYTES):
        save_file(dict(held), out_dir / _part(len(shards)), metadata={"format": "pt"})
        shards.append([name for name, _ in held])
        total += sum(tensor.nbytes for _, tensor in held)
        held.clear()  # else it would stay in memory while the next one is gathered
    if len(shards) == 1:
        (out_dir / _part(0)).rename(out_dir / SINGLE)
        return
    weight_map = {}
    for index, names in enumerate(shards):
        final = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors"
        (out_dir / _part(index)).rename(out_dir / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out_dir / INDEX).write_text(json.dumps(index, indent=2))


def _part(index: int) -> str:
    return f"part-{index}.safetensors"
