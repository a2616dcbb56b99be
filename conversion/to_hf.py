"""Megatron checkpoint -> Hugging Face directory."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from alp_megatron.config.model_shape import read_model_shape
from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.model.hf_files import copy_model_files, read_hf_config, stated_dtype
from conversion.hf_shards import Shard, shards_of, write_index
from conversion.megatron_reader import MegatronTensors
from conversion.output import fingerprint, whole_or_absent
from conversion.parameters import Parameter, parameters_of
from conversion.to_megatron import SOURCE_DTYPES
from conversion.verify import Verification
from conversion.workers import Progress, batches, run_tasks

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
    """Write the weights of a checkpoint as a Hugging Face model.

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
    parameters = parameters_of(read_hf_config(hf_dir)["model_type"], shape)
    tensors = MegatronTensors(state_dir)
    tensors.check(parameters)
    dtypes = _dtypes(hf_dir, parameters, tensors)
    shards = shards_of(parameters, dtypes, shard_bytes)
    nbytes = sum(shard.nbytes for shard in shards)
    files = [state_dir / ".metadata", *sorted(state_dir.glob("*.distcp")), hf_dir / "config.json"]
    job = {"source": fingerprint(files), "shard_bytes": shard_bytes}
    verification = Verification(verify, config, shape, parameters)
    with whole_or_absent(out, job, nbytes) as partial_dir:
        progress = Progress("converted", nbytes)
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
    """What every process needs to write its parameters."""

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


def _write_shards(writer: HfWriter, shards: list[Shard], workers: int, progress: Progress) -> None:
    tasks = []
    for shard in shards:
        shard.create(writer.out)
        groups = batches(shard.parameters, lambda p: prod(p.shape), TASK_ELEMENTS)
        tasks += [(shard, group) for group in groups]
    run_tasks(writer.write, tasks, workers, progress)
    for shard in shards:
        shard.finish(writer.out)
    for _, parameters in tasks:
        writer.done_mark(parameters).unlink(missing_ok=True)


def find_model(megatron_dir: Path, wanted: str | None) -> Path:
    """The directory with config.json: `wanted`, or where this project puts it."""
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
    """The source's own where it is known, else config.json's, else as stored."""
    known = hf_dir / SOURCE_DTYPES
    of_source = json.loads(known.read_text()) if known.is_file() else {}
    default = stated_dtype(read_hf_config(hf_dir))
    found = {}
    for parameter in parameters:
        stored = str(tensors.dtype(parameter)).removeprefix("torch.")
        for name in parameter.hf_names:
            found[name] = getattr(torch, of_source.get(name) or default or stored)
    return found
