"""Reads parts of safetensors files with plain reads.

A memory-mapped file would count in the process's memory, page by page, until the whole model did.
"""

import json
import os
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from alp_megatron.conversion.parameters import BY_ROWS, Box, Parameter, hf_rows
from alp_megatron.errors import UserError
from alp_megatron.weights.mapping import merge

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class HfTensors:
    """The tensors of a model directory by name; its files are whole (see check_weights)."""

    def __init__(self, model_dir: Path):
        self.model_dir = model_dir
        self._files: dict[Path, int] = {}
        self._entries: dict[str, tuple[Path, int, dict]] = {}
        for path in weight_files(model_dir):
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            self._entries |= {name: (path, 8 + length, entry) for name, entry in header.items()}

    def names(self) -> list[str]:
        return list(self._entries)

    def dtype(self, name: str) -> torch.dtype:
        path, _, entry = self._entries[name]
        if entry["dtype"] not in DTYPES:
            raise UserError(
                f"{path}: {name} has the type {entry['dtype']}: convert a model whose weights are "
                f"{', '.join(DTYPES)}."
            )
        return DTYPES[entry["dtype"]]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._entries[name][2]["shape"])

    def nbytes(self, name: str) -> int:
        start, end = self._entries[name][2]["data_offsets"]
        return end - start

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows start to stop of a tensor. Raises UserError if they hold NaN or infinity."""
        path, data, entry = self._entries[name]
        shape, dtype = self.shape(name), self.dtype(name)
        stop = shape[0] if stop is None else stop
        tensor = torch.empty(stop - start, *shape[1:], dtype=dtype)
        offset = data + entry["data_offsets"][0] + start * prod(shape[1:]) * dtype.itemsize
        self._read(path, offset, tensor)
        check_finite(tensor, f"{path}: {name}")
        return tensor

    def _read(self, path: Path, offset: int, tensor: Tensor) -> None:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        buffer = memoryview(bytes_of(tensor))
        while len(buffer):
            count = os.preadv(self._files[path], [buffer], offset)
            if count == 0:
                raise UserError(f"{path} ended while it was read: copy the model again.")
            buffer, offset = buffer[count:], offset + count


def weight_files(model_dir: Path) -> list[Path]:
    """The files with the weights: those of the index where there is one."""
    index = model_dir / "model.safetensors.index.json"
    if not index.exists():
        return [model_dir / "model.safetensors"]
    names = json.loads(index.read_text())["weight_map"].values()
    return [model_dir / name for name in sorted(set(names))]


def bytes_of(tensor: Tensor):
    """A contiguous tensor's memory as a numpy array of bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def check_finite(tensor: Tensor, name: str) -> None:
    # One pass without temporaries: both are NaN where the tensor holds a NaN.
    low, high = tensor.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise UserError(f"{name} holds NaN or infinity: use weights that are finite.")


class MergedParameters:
    """Boxes of Megatron parameters, merged from Hugging Face tensors as they are asked for."""

    def __init__(self, tensors: HfTensors, query_groups: int):
        self._tensors = tensors
        self._query_groups = query_groups
        self._last: tuple[Parameter, Tensor] | None = None

    def box(self, parameter: Parameter, box: Box) -> Tensor:
        """A part of a parameter, contiguous; the boxes of a parameter are best asked in a row."""
        (first, *_), (count, *_) = box
        if parameter.layout in BY_ROWS:
            self._last = None
            parts = list(self._rows(parameter, first, first + count))
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        if self._last is None or self._last[0] != parameter:
            self._last = None  # before the next one is read
            parts = [self._tensors.rows(name) for name in parameter.hf_names]
            self._last = parameter, merge(parameter.layout, parts, self._query_groups)
        slices = tuple(slice(o, o + n) for o, n in zip(*box, strict=True))
        return self._last[1][slices].contiguous()

    def _rows(self, parameter: Parameter, start: int, stop: int) -> Iterator[Tensor]:
        for name, low, high in hf_rows(parameter, start, stop):
            yield self._tensors.rows(name, low, high)
