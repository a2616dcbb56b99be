"""One rank's part of Megatron's sharded state: planned at once, written when it suits the caller.

Megatron-Core 0.19.2 writes later only through nvidia-resiliency-ext 0.6, which has no release on
PyPI and writes in processes of its own, or through code that it calls deprecated at every save.
The format (torch_dist) is torch.distributed.checkpoint's, so its writer does the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint import FileSystemWriter, Metadata, SavePlan
from torch.distributed.checkpoint.storage import WriteResult

from alp_megatron.runtime.mesh import to_first_rank


@dataclass
class RankPart:
    """What one rank writes of a checkpoint. `metadata`, on rank 0, says where everything is."""

    writer: FileSystemWriter
    plan: SavePlan
    data: dict  # by the index of the plan's items: a tensor, or bytes
    metadata: Metadata | None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.data.values() if isinstance(t, torch.Tensor))

    def detach(self, copied: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Puts `copied(tensor)` in the place of every tensor."""
        for index, value in self.data.items():
            if isinstance(value, torch.Tensor):
                self.data[index] = copied(value)

    def write(self) -> list[WriteResult]:
        """Writes this rank's file and waits for the disk. Calls no other rank."""
        return self.writer.write_data(self.plan, self).wait() if self.plan.items else []

    def resolve_data(self, item):
        """Answers the writer, which asks a planner for its data; here this object has them."""
        return self.data[item.index]

    def finish(self, results: list[list[WriteResult]]) -> None:
        """Writes, on rank 0, where each tensor is: the results of all ranks by rank."""
        FileSystemWriter(self.writer.path).finish(self.metadata, results)


class PlannedSave(TorchDistSaveShardedStrategy):
    """Megatron's strategy, but `save` leaves in `part` what this rank has to write."""

    def __init__(self):
        super().__init__()
        self.part: RankPart | None = None

    def save(self, sharded_state_dict: dict, checkpoint_dir: str | Path) -> None:
        own, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        planner = MCoreSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner(mcore_to_pyt_state_dict(own), is_coordinator=dist.get_rank() == 0)
        # Nothing is on the GPU any more when it is written, so nothing is copied ahead.
        writer = FileSystemWriter(checkpoint_dir, per_thread_copy_ahead=0)
        # Megatron's plans need no change by rank 0: "without collectives" a rank names its file.
        writer.set_up_storage_writer(
            dist.get_rank() == 0, rank=dist.get_rank(), use_collectives=False
        )
        plan = writer.prepare_local_plan(planner.create_local_plan())
        plans = to_first_rank(plan)
        metadata = planner.create_global_plan(plans)[1] if plans else None
        data = {item.index: planner.resolve_data(item) for item in plan.items}
        self.part = RankPart(writer, plan, data, metadata)


def save_now(state: dict, directory: Path, **options) -> None:
    """Does `dist_checkpointing.save` without the deprecated writer that it takes. Collective."""
    strategy = PlannedSave()
    dist_checkpointing.save(state, str(directory), strategy, **options)
    results = to_first_rank(strategy.part.write())
    if results:
        strategy.part.finish(results)
    dist.barrier()
