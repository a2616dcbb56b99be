"""Writes safetensors files whose tensors arrive in parts, in any order within the file."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from conversion.hf_tensors import DTYPES, bytes_of
from conversion.parameters import Parameter

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Shard:
    """One file: its parameters, and the shape and dtype of each tensor in the file's order."""

    file_name: str
    parameters: tuple[Parameter, ...]
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]

    @property
    def nbytes(self) -> int:
        return sum(prod(shape) * dtype.itemsize for shape, dtype in self.tensors.values())


def shards_of(
    parameters: list[Parameter], dtypes: dict[str, torch.dtype], max_bytes: int
) -> list[Shard]:
    """Deal the parameters, in order, to files of at most `max_bytes` (or one parameter).

    Args:
        dtypes: of every Hugging Face tensor.
    """
    files, size = [[]], 0
    for parameter in parameters:
        nbytes = sum(
            prod(shape) * dtype.itemsize for shape, dtype in _tensors(parameter, dtypes).values()
        )
        if files[-1] and size + nbytes > max_bytes:
            files.append([])
            size = 0
        files[-1].append(parameter)
        size += nbytes
    names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    if len(files) == 1:
        names = ["model.safetensors"]
    return [
        Shard(name, tuple(held), {n: t for p in held for n, t in _tensors(p, dtypes).items()})
        for name, held in zip(names, files, strict=True)
    ]


def _tensors(parameter: Parameter, dtypes: dict[str, torch.dtype]) -> dict:
    return {
        name: ((rows, *parameter.shape[1:]), dtypes[name])
        for name, rows in zip(parameter.hf_names, parameter.hf_rows, strict=True)
    }


def write_shard(directory: Path, shard: Shard, parts: Iterable[tuple[str, int, Tensor]]) -> None:
    """Write the file under a temporary name and rename it when it is whole.

    Args:
        parts: (name, first row, rows): every row of every tensor once.
    """
    header, offsets, end = {"__metadata__": {"format": "pt"}}, {}, 0
    for name, (shape, dtype) in shard.tensors.items():
        offsets[name], end = end, end + prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offsets[name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = directory / f".{shard.file_name}"
    written = 0
    with temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, first, rows in parts:
            shape, dtype = shard.tensors[name]
            data = bytes_of(rows.to(dtype).contiguous())
            file.seek(8 + len(text) + offsets[name] + first * prod(shape[1:]) * dtype.itemsize)
            file.write(data)
            written += data.nbytes
        assert written == end, f"{written} of {end} bytes of {shard.file_name}"
    temporary.rename(directory / shard.file_name)


def write_index(directory: Path, shards: list[Shard]) -> None:
    """The index of a model in several files."""
    if len(shards) == 1:
        return
    weight_map = {name: shard.file_name for shard in shards for name in shard.tensors}
    index = {
        "metadata": {"total_size": sum(shard.nbytes for shard in shards)},
        "weight_map": weight_map,
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
