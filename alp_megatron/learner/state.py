"""What a checkpoint holds of a learner, in Megatron's distributed format (torch_dist)."""

import json
import sys
from operator import attrgetter
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state

from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.fp8.linear import HISTORY
from alp_megatron.learner.checkpoints import COUNTERS, checkpoint_dirs, damage, set_aside
from alp_megatron.learner.learner import Learner
from alp_megatron.learner.optimizer import chained
from alp_megatron.runtime.mesh import from_every_rank

# What `dp_reshardable` binds a checkpoint to: it holds the optimizer's buckets as they are.
_BOUND_TO = (
    "model.tensor_model_parallel_size",
    "model.pipeline_model_parallel_size",
    "model.virtual_pipeline_model_parallel_size",
    "model.expert_model_parallel_size",
    "trainer.use_distributed_optimizer",
)


def metadata(config: Config) -> dict:
    """Returns what a checkpoint says of its own form."""
    return {
        "distrib_optim_sharding_type": config.trainer.distrib_optim_sharding_type,
        "layout": {key: attrgetter(key)(config) for key in _BOUND_TO},
    }


def load_checkpoint(directory: Path, learner: Learner) -> dict:
    """Fills weights, s_l, optimizer and schedule; returns the counters. Collective.

    Raises:
        UserError: the checkpoint is not for this layout, or lacks what the FP8 recipe needs.
    """
    _check_amax_history(directory, learner)
    form = dist_checkpointing.load_content_metadata(str(directory / "state"))
    _check_layout(directory, form, learner.config)
    wanted = sharded_state(learner, form, loading=True)
    state = dist_checkpointing.load(wanted, str(directory / "state"))
    _fill(learner.chunks, state)
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.scheduler.load_state_dict(state["scheduler"])
    return json.loads((directory / COUNTERS).read_text())


def load_weights(directory: Path, chunks: list) -> None:
    """Fills the weights and s_l alone, for a new optimizer. Collective."""
    _fill(chunks, dist_checkpointing.load(_sharded_model(chunks), str(directory / "state")))


def _fill(chunks: list, state: dict) -> None:
    for index, chunk in enumerate(chunks):
        chunk.load_state_dict(state[f"model{index}"])


def sharded_state(learner: Learner, form: dict, loading: bool) -> dict:
    """Returns this rank's part of weights, s_l, optimizer and schedule, as Megatron names them."""
    model = _sharded_model(learner.chunks)
    if loading:
        _initialise_optimizer_state(learner.optimizer)
    optimizer = learner.optimizer.sharded_state_dict(model, is_loading=loading, metadata=form)
    return {**model, "optimizer": optimizer, "scheduler": learner.scheduler.state_dict()}


def _sharded_model(chunks: list) -> dict:
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return {
        f"model{index}": chunk.sharded_state_dict(metadata={"dp_cp_group": group})
        for index, chunk in enumerate(chunks)
    }


def _check_layout(directory: Path, form: dict, config: Config) -> None:
    if form["distrib_optim_sharding_type"] == "fully_reshardable":
        return
    for key, saved in form["layout"].items():
        if attrgetter(key)(config) != saved:
            value = json.dumps(saved)
            raise UserError(
                f"{directory} was made with {key}={value} and "
                "trainer.distrib_optim_sharding_type=dp_reshardable, so it can be resumed at "
                f"another data-parallel size only: set {key}={value}."
            )


def _check_amax_history(directory: Path, learner: Learner) -> None:
    """Raises UserError where emulated FP8 needs a history that the checkpoint does not have."""
    wanted = [n for chunk in learner.chunks for n, _ in chunk.named_buffers() if HISTORY in n]
    saved = dist_checkpointing.load_tensors_metadata(str(directory / "state")) if wanted else ()
    if wanted and not any(HISTORY in name for name in saved):
        raise UserError(
            f"{directory} was made without model.fp8.recipe=delayed and has no amax history: "
            "resume with another recipe, or start another run_dir."
        )


def _initialise_optimizer_state(optimizer) -> None:
    """torch's AdamW makes its moments at the first step, but a load needs places to fill; Megatron
    makes those of its other optimizers, which count steps by group."""
    for part in chained(optimizer):
        if not isinstance(part.optimizer, torch.optim.AdamW):
            continue
        for group in part.optimizer.param_groups:
            for parameter in group["params"]:
                state = part.optimizer.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)


def newest_whole(run_dir: Path) -> Path | None:
    """Returns the newest checkpoint that is what its manifest says; None if there is none at all.

    Damaged ones are named on stderr and renamed. Collective: every rank reads a part.

    Raises:
        UserError: all are damaged; none is renamed.
    """
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(checkpoint_dirs(run_dir)):
        faults = from_every_rank(damage(checkpoint, dist.get_rank(), dist.get_world_size()))
        fault = next((fault for fault in faults if fault), None)
        if fault is None:
            if dist.get_rank() == 0:
                _set_aside(damaged, checkpoint)
            dist.barrier()
            return checkpoint
        damaged[checkpoint] = fault
    if damaged:
        names = "; ".join(f"{checkpoint.name}: {fault}" for checkpoint, fault in damaged.items())
        raise UserError(
            f"{run_dir}/checkpoints has none that is whole ({names}): restore one, or start "
            "another run_dir."
        )
    return None


def _set_aside(damaged: dict[Path, str], used: Path) -> None:
    for checkpoint, fault in damaged.items():
        place = set_aside(checkpoint)
        print(
            f"warning: {checkpoint} is damaged ({fault}): it is now {place.name}, and the run "
            f"goes on from {used.name}.",
            file=sys.stderr,
            flush=True,
        )
