"""Writes safetensors files whose tensors arrive in parts, in any order, from several processes."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from conversion.hf_tensors import DTYPES, bytes_of
from conversion.parameters import Parameter
from conversion.workers import batches

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Shard:
    """One file: its parameters, and the shape and dtype of each tensor in the file's order.

    It has a hidden name until it is whole.
    """

    file_name: str
    parameters: tuple[Parameter, ...]
    tensors: dict[str, tuple[tuple[int, ...], torch.dtype]]

    @property
    def nbytes(self) -> int:
        return sum(prod(shape) * dtype.itemsize for shape, dtype in self.tensors.values())

    @cached_property
    def _header(self) -> tuple[bytes, dict[str, int]]:
        """The file's beginning, and where each tensor's data lie in the file."""
        entries, starts, end = {"__metadata__": {"format": "pt"}}, {}, 0
        for name, (shape, dtype) in self.tensors.items():
            starts[name], end = end, end + prod(shape) * dtype.itemsize
            entries[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [starts[name], end],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        return header, {name: len(header) + start for name, start in starts.items()}

    def create(self, directory: Path) -> None:
        """Make the file with its header and full length, unless an earlier attempt did."""
        header, _ = self._header
        path, size = self._hidden(directory), len(header) + self.nbytes
        if self.is_whole(directory) or (path.is_file() and path.stat().st_size == size):
            return
        with path.open("wb") as file:
            file.write(header)
            file.truncate(size)

    def write(self, directory: Path, parts: Iterable[tuple[str, int, Tensor]]) -> None:
        """Write (name, first row, rows) in their places."""
        _, starts = self._header
        with self._hidden(directory).open("r+b") as file:
            for name, first, rows in parts:
                shape, dtype = self.tensors[name]
                file.seek(starts[name] + first * prod(shape[1:]) * dtype.itemsize)
                file.write(bytes_of(rows.to(dtype).contiguous()))

    def is_whole(self, directory: Path) -> bool:
        return (directory / self.file_name).exists()

    def finish(self, directory: Path) -> None:
        """Give the file its name once it is on the disk."""
        if self.is_whole(directory):
            return
        with self._hidden(directory).open("r+b") as file:
            os.fsync(file.fileno())
        self._hidden(directory).rename(directory / self.file_name)

    def _hidden(self, directory: Path) -> Path:
        return directory / f".{self.file_name}"


def shards_of(
    parameters: list[Parameter], dtypes: dict[str, torch.dtype], max_bytes: int
) -> list[Shard]:
    """Deal the parameters, in order, to files of at most `max_bytes` (or one parameter).

    Args:
        dtypes: of every Hugging Face tensor.
    """

    def nbytes(parameter: Parameter) -> int:
        return sum(prod(shape) * d.itemsize for shape, d in _tensors(parameter, dtypes).values())

    files = batches(parameters, nbytes, max_bytes)
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
