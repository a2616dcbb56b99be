"""Writes checkpoints beside the training: the trainer waits for a copy in memory, not for a disk.

Megatron plans the save and names what each rank writes; a thread of each rank writes its copy, and
rank 0's the policy as a Hugging Face model too. Collective calls stay on the main thread: those
that complete a checkpoint are made between two steps, when every rank's thread is done.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelSaveStrategyWrapper,
)

from alp_megatron.files import write_atomic
from alp_megatron.learner.checkpoints import (
    CHECKPOINTS,
    COUNTERS,
    check_free_space,
    describe,
    publish,
    remove_leftovers,
    retire,
    write_manifest,
    writing,
)
from alp_megatron.learner.learner import Learner
from alp_megatron.learner.optimizer import chained
from alp_megatron.learner.state import metadata, sharded_state
from alp_megatron.learner.writer import write_in_this_process
from alp_megatron.runtime.mesh import from_every_rank
from alp_megatron.weights.export import WeightExport
from alp_megatron.weights.hf_model import export_dtype, write_model

write_in_this_process()


@dataclass(frozen=True)
class _Save:
    """A checkpoint that is being written. `written` gives this rank's files, described."""

    final: Path
    partial: Path
    nbytes: int  # on all ranks
    complete: list[Callable[[], None]]  # Megatron's last steps, collective
    written: Future


class CheckpointSaver:
    """All methods are collective. One checkpoint is written at a time."""

    def __init__(self, run_dir: Path, learner: Learner, export: WeightExport):
        self._run_dir, self._learner, self._export = run_dir, learner, export
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        if dist.get_rank() == 0:
            self._removal = self._thread.submit(remove_leftovers, run_dir)
        # What all replicas hold is written by all, each a part.
        self._strategy = FullyParallelSaveStrategyWrapper(
            get_default_save_sharded_strategy(),
            parallel_state.get_data_parallel_group(with_context_parallel=True),
        )
        self._save: _Save | None = None

    def start(self, step: int, counters: dict) -> None:
        """Copy what training has after `step` steps, and begin to write it.

        Args:
            counters: plain values that the loop needs to go on, given back by `load_checkpoint`.

        Raises:
            UserError: there is too little space, also for the save before.
        """
        self.finish()
        final = self._run_dir / CHECKPOINTS / f"step_{step:06d}"
        partial = final.with_name(f".{final.name}.partial")
        with writing(partial):
            if dist.get_rank() == 0:
                self._removal.result()
                (partial / "state").mkdir(parents=True)
                write_atomic(partial / COUNTERS, json.dumps(counters | {"step": step}).encode())
            dist.barrier()
            form = metadata(self._learner.config)
            request = dist_checkpointing.save(
                sharded_state(self._learner, form, loading=False),
                str(partial / "state"),
                self._strategy,
                content_metadata=form,
                async_sharded_save=True,
            )
        buckets = _copied(request.async_fn_args[1], self._learner) if request.async_fn else []
        model, dtype = self._hf_model()
        own = sum(t.nbytes for _, _, (_, data) in buckets for _, t in data)
        nbytes = sum(from_every_rank(own + sum(tensor.nbytes for _, tensor in model)))
        if dist.get_rank() == 0:
            check_free_space(partial, nbytes)

        def write() -> dict[str, dict]:
            if buckets:
                request.async_fn(request.async_fn_args[0], buckets, request.async_fn_args[2])
            if model:
                write_model(model, self._source, partial / "hf", dtype)
            files = [Path(path) for path, _, _ in buckets]
            files += (partial / "hf").iterdir() if model else []
            return {str(path.relative_to(partial)): describe(path) for path in files}

        written = self._thread.submit(write)
        self._save = _Save(final, partial, nbytes, request.finalize_fns, written)

    def written(self) -> bool:
        """Whether every rank has written its part, so that `finish` will not wait."""
        return self._save is None or all(from_every_rank(self._save.written.done()))

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if any, and make it visible.

        It gets its name; a thread removes those that `trainer.keep_checkpoints` does not keep.

        Raises:
            UserError: it could not be written; those before it are untouched.
        """
        if self._save is None:
            return
        save, self._save = self._save, None
        with writing(save.partial, save.nbytes):
            described = from_every_rank(save.written.result())
            for complete in save.complete:
                complete()
            if dist.get_rank() == 0:
                known = {name: entry for part in described for name, entry in part.items()}
                write_manifest(save.partial, known)
                publish(save.partial, save.final)
                trainer = self._learner.config.trainer
                retire(self._run_dir, trainer.keep_checkpoints, trainer.keep_best_checkpoint)
                self._removal = self._thread.submit(remove_leftovers, self._run_dir)
        dist.barrier()

    @property
    def _source(self) -> Path:
        return Path(self._learner.config.model.path)

    def _hf_model(self) -> tuple[list[tuple[str, torch.Tensor]], torch.dtype]:
        """A copy of all weights on rank 0, under their Hugging Face names; empty elsewhere."""
        dtype = export_dtype(self._source, self._learner.rollout_dtype)
        # The stream yields views that the next bucket overwrites.
        return [(n, t.to("cpu", copy=True)) for n, t in self._export.stream(dtype)], dtype


def _copied(buckets: list, learner: Learner) -> list:
    """Megatron's write buckets with every tensor in memory that training does not touch.

    Much of it is already: Megatron copies what is a view of something larger.
    """
    in_use = {tensor.untyped_storage().data_ptr() for tensor in _held(learner)}

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_cuda:
            return tensor.to("cpu", non_blocking=True)
        return tensor.clone() if tensor.untyped_storage().data_ptr() in in_use else tensor

    copies = [
        (path, key, (blobs, [(index, copied(tensor)) for index, tensor in data]))
        for path, key, (blobs, data) in buckets
    ]
    if learner.device.type == "cuda":
        torch.cuda.synchronize()
    return copies


def _held(learner: Learner) -> Iterator[torch.Tensor]:
    """Every tensor that training changes."""
    for chunk in learner.chunks:
        yield from chunk.parameters()
        yield from chunk.buffers()
    for part in chained(learner.optimizer):
        for group in part.optimizer.param_groups:
            yield from group["params"]
        for state in part.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))
