"""Megatron checkpoint -> Hugging Face directory."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from alp_megatron.config.schema import Config
from alp_megatron.conversion.megatron_reader import MegatronTensors
from alp_megatron.conversion.output import fingerprint, whole_or_absent
from alp_megatron.conversion.parameters import Parameter, parameters_of
from alp_megatron.conversion.to_megatron import SOURCE_DTYPES
from alp_megatron.conversion.verify import Verification
from alp_megatron.conversion.workers import ByteProgress, run_tasks
from alp_megatron.errors import UserError
from alp_megatron.files import partial_of
from alp_megatron.hf.files import copy_model_files, read_hf_config, stated_dtype
from alp_megatron.hf.shape import read_model_shape
from alp_megatron.hf.tensors import DTYPES, INDEX, SINGLE, bytes_of
from alp_megatron.weights.transport.buckets import bounded

_NAMES = {getattr(torch, dtype): name for name, dtype in DTYPES.items()}


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
        """Makes the file with its header and full length, unless an earlier attempt did."""
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
        """Gives the file its name once it is on the disk."""
        if self.is_whole(directory):
            return
        with self._hidden(directory).open("r+b") as file:
            os.fsync(file.fileno())
        self._hidden(directory).rename(directory / self.file_name)

    def _hidden(self, directory: Path) -> Path:
        return partial_of(directory / self.file_name)


def shards_of(
    parameters: list[Parameter], dtypes: dict[str, torch.dtype], max_bytes: int
) -> list[Shard]:
    """Deals the parameters, in order, to files of at most `max_bytes` (or one parameter).

    Args:
        dtypes: of every Hugging Face tensor.
    """

    def nbytes(parameter: Parameter) -> int:
        return sum(prod(shape) * d.itemsize for shape, d in _tensors(parameter, dtypes).values())

    files = list(bounded(parameters, nbytes, max_bytes))
    names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    if len(files) == 1:
        names = [SINGLE]
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
    """Writes the index of a model in several files."""
    if len(shards) == 1:
        return
    weight_map = {name: shard.file_name for shard in shards for name in shard.tensors}
    index = {
        "metadata": {"total_size": sum(shard.nbytes for shard in shards)},
        "weight_map": weight_map,
    }
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


TASK_ELEMENTS = 2**25  # written by one process before it takes more


def megatron_to_hf(
    megatron_dir: Path,
    out: Path,
    hf_dir: Path,
    config: Config,
    *,
    shard_bytes: int,
    workers: int,
    verify: str,
) -> None:
    """Writes the weights of a checkpoint as a Hugging Face model.

    Optimizer states, ALP's scales and Transformer Engine's extra states are left behind.

    Args:
        megatron_dir: what hf_to_megatron wrote, a trainer's `checkpoints/step_N`, or the directory
            with `.metadata` itself.
        hf_dir: the model whose config and tokenizer the output gets; see find_model.
        config: its `model` is the layout in which the logits are verified.
        shard_bytes: the most bytes of tensors in one file.
        verify: "auto", "full" or "off"; see Verification.

    Raises:
        UserError: the checkpoint is not whole or not of that model; the output cannot be made.
        RunError: the verification failed.
    """
    state_dir = megatron_dir / "state" if (megatron_dir / "state").is_dir() else megatron_dir
    shape = read_model_shape(hf_dir)
    parameters = parameters_of(shape)
    tensors = MegatronTensors(state_dir)
    tensors.check(parameters)
    dtypes = _dtypes(hf_dir, parameters, tensors)
    shards = shards_of(parameters, dtypes, shard_bytes)
    nbytes = sum(shard.nbytes for shard in shards)
    files = [state_dir / ".metadata", *sorted(state_dir.glob("*.distcp")), hf_dir / "config.json"]
    job = {"source": fingerprint(files), "shard_bytes": shard_bytes}
    verification = Verification(verify, config, shape, parameters)
    with whole_or_absent(out, job, nbytes) as partial_dir:
        progress = ByteProgress("converted", nbytes)
        writer = HfWriter(state_dir, partial_dir, shape.num_key_value_heads, shape.head_dim)
        _write_shards(writer, shards, workers, progress)
        write_index(partial_dir, shards)
        copy_model_files(hf_dir, partial_dir)
        (partial_dir / SOURCE_DTYPES).unlink(missing_ok=True)
        progress.finish()
        verification.tensors(partial_dir, state_dir, workers)
        verification.logprobs(partial_dir, state_dir)


@dataclass(frozen=True)
class HfWriter:
    """Holds what every process needs to write its parameters."""

    state_dir: Path
    out: Path
    query_groups: int
    head_dim: int

    def write(self, task: tuple[Shard, list[Parameter]]) -> int:
        """Write some parameters of a shard unless an earlier attempt did. Returns their bytes."""
        shard, parameters = task
        done = self.done_mark(parameters)
        if not shard.is_whole(self.out) and not done.exists():
            tensors = MegatronTensors(self.state_dir)
            shard.write(self.out, self._parts(tensors, parameters))
            done.touch()
        names = [name for parameter in parameters for name in parameter.hf_names]
        return sum(prod(shape) * dtype.itemsize for shape, dtype in map(shard.tensors.get, names))

    def _parts(self, tensors: MegatronTensors, parameters: list[Parameter]):
        for parameter in parameters:
            yield from tensors.hf_parts(parameter, self.query_groups, self.head_dim)

    def done_mark(self, parameters: list[Parameter]) -> Path:
        return self.out / f".done_{parameters[0].name}"


def _write_shards(
    writer: HfWriter, shards: list[Shard], workers: int, progress: ByteProgress
) -> None:
    tasks = []
    for shard in shards:
        shard.create(writer.out)
        groups = bounded(shard.parameters, lambda p: prod(p.shape), TASK_ELEMENTS)
        tasks += [(shard, group) for group in groups]
    run_tasks(writer.write, tasks, workers, progress)
    for shard in shards:
        shard.finish(writer.out)
    for _, parameters in tasks:
        writer.done_mark(parameters).unlink(missing_ok=True)


def find_model(megatron_dir: Path, wanted: str | None) -> Path:
    """Finds the directory with config.json: `wanted`, or where this project puts it."""
    if wanted is not None:
        return Path(wanted)
    if not megatron_dir.is_dir():
        raise UserError(f"--megatron {megatron_dir} is not a directory: check the path.")
    for place in (megatron_dir / "hf", megatron_dir):
        if (place / "config.json").is_file():
            return place
    raise UserError(
        f"--megatron {megatron_dir} has no config.json: name the model's directory with --hf DIR."
    )


def _dtypes(
    hf_dir: Path, parameters: list[Parameter], tensors: MegatronTensors
) -> dict[str, torch.dtype]:
    """Returns the source's own types where they are known, else config.json's, else the stored."""
    known = hf_dir / SOURCE_DTYPES
    of_source = json.loads(known.read_text()) if known.is_file() else {}
    default = stated_dtype(read_hf_config(hf_dir))
    found = {}
    for parameter in parameters:
        stored = str(tensors.dtype(parameter)).removeprefix("torch.")
        for name in parameter.hf_names:
            found[name] = getattr(torch, of_source.get(name) or default or stored)
    return found
