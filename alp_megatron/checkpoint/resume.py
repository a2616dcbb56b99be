"""Finds the checkpoint that a run goes on from."""

import sys
from pathlib import Path

import torch.distributed as dist

from alp_megatron.checkpoint.directory import checkpoint_dirs, set_aside
from alp_megatron.checkpoint.manifest import damage
from alp_megatron.errors import UserError
from alp_megatron.runtime.process_groups import from_every_rank


def newest_whole(run_dir: Path) -> Path | None:
    """The newest checkpoint that is what its manifest says; None if there is none at all.

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
