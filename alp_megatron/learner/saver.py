"""Writes checkpoints beside the training: the trainer waits for a copy in memory, not for a disk.

Megatron plans the save and names what each rank writes; a thread of each rank writes its copy, and
rank 0's the policy as a Hugging Face model too. Collective calls stay on the main thread: those
that complete a checkpoint are made between two steps, when every rank's thread is done.
"""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelSaveStrategyWrapper,
)

from alp_megatron.files import partial_of, write_atomic
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
from alp_megatron.learner.writer import PlannedSave, RankPart
from alp_megatron.runtime.mesh import from_every_rank, to_first_rank
from alp_megatron.weights.export import WeightExport
from alp_megatron.weights.hf_model import export_dtype, write_model


@dataclass(frozen=True)
class _Save:
    """A checkpoint that is being written.

    `written` gives where this rank's tensors are in its file, and its files, described.
    """

    final: Path
    partial: Path
    nbytes: int  # on all ranks
    part: RankPart
    written: Future


class CheckpointSaver:
    """All methods are collective. One checkpoint is written at a time."""

    def __init__(self, run_dir: Path, learner: Learner, export: WeightExport):
        self._run_dir, self._learner, self._export = run_dir, learner, export
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        if dist.get_rank() == 0:
            self._removal = self._thread.submit(remove_leftovers, run_dir)
        # What all replicas hold is written by all, each a part.
        self._planned = PlannedSave()
        self._strategy = FullyParallelSaveStrategyWrapper(
            self._planned,
            parallel_state.get_data_parallel_group(with_context_parallel=True),
        )
        self._save: _Save | None = None

    def start(self, step: int, counters: dict) -> None:
        """Copies what training has after `step` steps, and begins to write it.

        Args:
            counters: plain values that the loop needs to go on, given back by `load_checkpoint`.

        Raises:
            UserError: there is too little space, also for the save before.
        """
        self.finish()
        final = self._run_dir / CHECKPOINTS / f"step_{step:06d}"
        partial = partial_of(final)
        with writing(partial):
            if dist.get_rank() == 0:
                self._removal.result()
                (partial / "state").mkdir(parents=True)
                write_atomic(partial / COUNTERS, json.dumps(counters | {"step": step}).encode())
            dist.barrier()
            form = metadata(self._learner.config)
            dist_checkpointing.save(
                sharded_state(self._learner, form, loading=False),
                str(partial / "state"),
                self._strategy,
                content_metadata=form,
            )
        part, self._planned.part = self._planned.part, None
        _detach(part, self._learner)
        model, dtype = self._hf_model()
        nbytes = sum(from_every_rank(part.nbytes + sum(tensor.nbytes for _, tensor in model)))
        if dist.get_rank() == 0:
            check_free_space(partial, nbytes)

        def write() -> tuple[list, dict[str, dict]]:
            results = part.write()
            if model:
                write_model(model, self._source, partial / "hf", dtype)
            files = [partial / "state" / n for n in {r.storage_data.relative_path for r in results}]
            files += (partial / "hf").iterdir() if model else []
            return results, {str(path.relative_to(partial)): describe(path) for path in files}

        self._save = _Save(final, partial, nbytes, part, self._thread.submit(write))

    def written(self) -> bool:
        """Returns whether every rank has written its part, so that `finish` will not wait."""
        return self._save is None or all(from_every_rank(self._save.written.done()))

    def finish(self) -> None:
        """Waits for the checkpoint that is being written, if any, and makes it visible.

        It gets its name; a thread removes those that `trainer.keep_checkpoints` does not keep.

        Raises:
            UserError: it could not be written; those before it are untouched.
        """
        if self._save is None:
            return
        save, self._save = self._save, None
        with writing(save.partial, save.nbytes):
            written = to_first_rank(save.written.result())
            if written:
                save.part.finish([results for results, _ in written])
                known = {name: entry for _, files in written for name, entry in files.items()}
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
        """Copies all weights on rank 0, under their Hugging Face names; nothing elsewhere."""
        dtype = export_dtype(self._source, self._learner.rollout_dtype)
        # The stream yields views that the next bucket overwrites.
        return [(n, t.to("cpu", copy=True)) for n, t in self._export.stream(dtype)], dtype


def _detach(part: RankPart, learner: Learner) -> None:
    """Gives the part tensors of its own, in memory that training does not touch.

    Some are already: Megatron has gathered them for this save.
    """
    in_use = {tensor.untyped_storage().data_ptr() for tensor in _held(learner)}

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_cuda:
            return tensor.to("cpu", non_blocking=True)
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in in_use
        return tensor if alone else tensor.clone()

    part.detach(copied)
    if learner.device.type == "cuda":
        torch.cuda.synchronize()


def _held(learner: Learner) -> Iterator[torch.Tensor]:
    """Yields every tensor that training changes."""
    for chunk in learner.chunks:
        yield from chunk.parameters()
        yield from chunk.buffers()
    for part in chained(learner.optimizer):
        for group in part.optimizer.param_groups:
            yield from group["params"]
        for state in part.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))
