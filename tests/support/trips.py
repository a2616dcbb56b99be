"""Conversions there and back, by the functions behind the commands, in this process."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from alp_megatron.config.schema import Config, ModelConfig
from alp_megatron.conversion.to_hf import megatron_to_hf
from alp_megatron.conversion.to_megatron import hf_to_megatron


def to_megatron(model_dir, out, tensor_parallel: int = 1) -> Path:
    layout = ModelConfig(path=str(model_dir), tensor_model_parallel_size=tensor_parallel)
    hf_to_megatron(Path(model_dir), Path(out), Config(model=layout), workers=1, verify="off")
    return Path(out)


def to_hf(megatron_dir, out, model_dir, shard_bytes: int = 100_000) -> Path:
    config = Config(model=ModelConfig(path=str(model_dir)))
    megatron_to_hf(
        Path(megatron_dir),
        Path(out),
        Path(model_dir),
        config,
        shard_bytes=shard_bytes,
        workers=1,
        verify="off",
    )
    return Path(out)


def tensors_of(model_dir) -> dict[str, torch.Tensor]:
    """All tensors, by safetensors' own reader."""
    index = Path(model_dir) / "model.safetensors.index.json"
    if not index.exists():
        return load_file(Path(model_dir) / "model.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    found = {}
    for name in sorted(set(weight_map.values())):
        found |= load_file(Path(model_dir) / name)
    assert found.keys() == weight_map.keys()
    return found


def assert_same_weights(one, other) -> None:
    """The same names, types and bits."""
    ours, theirs = tensors_of(one), tensors_of(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name
