"""Checkpoints of a run: whole or absent, and readable in another parallel layout.

A checkpoint is a directory `checkpoints/step_000010` with Megatron's distributed checkpoint in
`state/` and the policy as a Hugging Face model in `hf/`. It is written under a hidden name and
renamed when everything is on disk.
"""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from alp_megatron.diagnostics.files import write_atomic
from alp_megatron.errors import UserError
from alp_megatron.fp8.linear import HISTORY
from alp_megatron.trainer.checkpoint_writer import write_in_this_process
from alp_megatron.trainer.learner import Learner
from alp_megatron.weights.export import ExportPlan
from alp_megatron.weights.save_hf import save_hf

# Any TP, PP and DP can read it back.
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}

write_in_this_process()


def checkpoint_dirs(run_dir: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step_*"))


def save_checkpoint(run_dir: Path, step: int, learner: Learner, plan: ExportPlan, counters: dict):
    """Save after `step` steps and drop all but the newest `trainer.keep_checkpoints`. Collective.

    Args:
        counters: plain values that the loop needs to go on, given back by `load_checkpoint`.
    """
    final = run_dir / "checkpoints" / f"step_{step:06d}"
    partial = final.with_name(f".{final.name}.partial")
    first = dist.get_rank() == 0
    with _written(partial):
        if first:
            for leftover in final.parent.glob(".step_*"):
                shutil.rmtree(leftover)
            (partial / "state").mkdir(parents=True)
            write_atomic(partial / "counters.json", json.dumps(counters | {"step": step}).encode())
        dist.barrier()
        dist_checkpointing.save(
            _sharded_state(learner, loading=False),
            str(partial / "state"),
            content_metadata=_METADATA,
        )
        save_hf(plan, learner.config.model.path, partial / "hf", learner.rollout_dtype)
    if first:
        if final.exists():
            _remove(final)
        partial.rename(final)
        for old in checkpoint_dirs(run_dir)[: -learner.config.trainer.keep_checkpoints]:
            _remove(old)
    dist.barrier()


@contextmanager
def _written(partial: Path):
    """A disk that is full, which shows as many kinds of error, becomes one sentence."""
    try:
        yield
    except (CheckpointException, SafetensorError, OSError, RuntimeError) as error:
        # torch.save's zip writer has no error of its own.
        if type(error) is RuntimeError and "inline_container" not in str(error):
            raise
        shutil.rmtree(partial, ignore_errors=True)
        root = partial.parent
        free = shutil.disk_usage(root).free / 1e6
        raise UserError(
            f"{root}: a checkpoint cannot be written ({free:.0f} MB are free without it): free "
            "some space and continue with --resume."
        ) from error


def _remove(checkpoint: Path) -> None:
    """Hidden first: what a kill leaves of it must not look like a checkpoint."""
    shutil.rmtree(checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.old")))


def load_checkpoint(directory: Path, learner: Learner) -> dict:
    """Fill weights, s_l, optimizer and schedule; returns the counters. Collective."""
    _check_amax_history(directory, learner)
    state = dist_checkpointing.load(_sharded_state(learner, loading=True), str(directory / "state"))
    for index, chunk in enumerate(learner.chunks):
        chunk.load_state_dict(state[f"model{index}"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.scheduler.load_state_dict(state["scheduler"])
    return json.loads((directory / "counters.json").read_text())


def load_weights(directory: Path, chunks: list) -> None:
    """Fill the weights and s_l alone, for a new optimizer. Collective."""
    metadata = _METADATA | {"dp_cp_group": _data_parallel_group()}
    state = dist_checkpointing.load(_sharded_model(chunks, metadata), str(directory / "state"))
    for index, chunk in enumerate(chunks):
        chunk.load_state_dict(state[f"model{index}"])


def _check_amax_history(directory: Path, learner: Learner) -> None:
    """Raises UserError where emulated FP8 needs a history that the checkpoint does not have."""
    wanted = [n for chunk in learner.chunks for n, _ in chunk.named_buffers() if HISTORY in n]
    saved = dist_checkpointing.load_tensors_metadata(str(directory / "state")) if wanted else ()
    if wanted and not any(HISTORY in name for name in saved):
        raise UserError(
            f"{directory} was made without model.fp8.recipe=delayed and has no amax history: "
            "resume with another recipe, or start another run_dir."
        )


def _sharded_model(chunks: list, metadata: dict) -> dict:
    return {
        f"model{index}": chunk.sharded_state_dict(metadata=metadata)
        for index, chunk in enumerate(chunks)
    }


def _sharded_state(learner: Learner, loading: bool) -> dict:
    metadata = _METADATA | {"dp_cp_group": _data_parallel_group()}
    model = _sharded_model(learner.chunks, metadata)
    if loading:
        _initialise_optimizer_state(learner.optimizer)
    optimizer = learner.optimizer.sharded_state_dict(model, is_loading=loading, metadata=_METADATA)
    return {**model, "optimizer": optimizer, "scheduler": learner.scheduler.state_dict()}


def _data_parallel_group():
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def _initialise_optimizer_state(optimizer) -> None:
    """torch's AdamW makes its moments at the first step, but a load needs places to fill."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                state = part.optimizer.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
