"""What the plan's figures are compared with: allocations and collectives of real updates."""

from bisect import bisect_left
from collections import Counter

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from alp_megatron.learner.learner import Learner
from alp_megatron.perturbation import NoiseKey
from alp_megatron.trainer.step import update_policy

MARK = 7_654_321  # bytes of the tensors before and after the update that is measured


def memory(config, rank, trajectories: list) -> tuple[int, int]:
    """(bytes held between updates, most bytes held in an update), by torch's own allocator."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        learner = Learner(config, rank.device)
        update_policy(learner, trajectories, None, NoiseKey(1, 0, 0))
        torch.empty(MARK, dtype=torch.uint8)
        update_policy(learner, trajectories, None, NoiseKey(1, 0, 1))
        torch.empty(MARK, dtype=torch.uint8)
        # Whatever is free by now is given away, for `_allocations` to see that it is.
        _ = [torch.empty(2**18, dtype=torch.uint8) for _ in range(2000)]
    held = between = peak = 0
    marks = 0
    for size in _allocations(profiled):
        marks += size == MARK
        if size == MARK and marks == 1:
            between = peak = held
        held += size
        if size != MARK and marks == 1:
            peak = max(peak, held)
    assert marks == 2, "the marks were not seen"
    return between, peak


def _allocations(profiled) -> list[int]:
    """Bytes of each allocation, and of each release with a minus, in their order.

    gloo's threads are not profiled: what was allocated by one of them is left out, and so is what
    one of them released, which shows when its place in memory is given to something else.
    """
    from torch._C._profiler import _EventType

    waiting = list(profiled.profiler.kineto_results.experimental_event_tree())
    found = []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields))
    sizes: list[int] = []
    blocks: list[tuple[int, int, int]] = []  # that are held: (address, end, index in `sizes`)
    for _, fields in sorted(found, key=lambda one: one[0]):
        place = bisect_left(blocks, (fields.ptr,))
        if fields.alloc_size > 0:
            end = fields.ptr + fields.alloc_size
            if place and blocks[place - 1][1] > fields.ptr:
                place -= 1
            while place < len(blocks) and blocks[place][0] < end:
                sizes[blocks.pop(place)[2]] = 0
            blocks.insert(place, (fields.ptr, end, len(sizes)))
        elif place < len(blocks) and blocks[place][0] == fields.ptr:
            del blocks[place]
        else:
            continue
        sizes.append(fields.alloc_size)
    return sizes


def traffic(config, rank, trajectories: list) -> dict[tuple[str, str], int]:
    """Bytes of one update's collectives by (group, operation), those of Megatron's groups."""
    learner = Learner(config, rank.device)
    update_policy(learner, trajectories, None, NoiseKey(1, 0, 0))
    with _Collectives() as counted:
        update_policy(learner, trajectories, None, NoiseKey(1, 0, 1))
    return dict(counted.nbytes)


class _Collectives(TorchDispatchMode):
    """Every collective is an operation of torch's dispatcher, whoever calls it."""

    def __init__(self):
        super().__init__()
        from megatron.core import parallel_state as state

        self.nbytes: Counter = Counter()
        groups = {
            "tp": state.get_tensor_model_parallel_group(),
            "pp": state.get_pipeline_model_parallel_group(),
            "dp": state.get_data_parallel_group(with_context_parallel=True),
            "ep": state.get_expert_model_parallel_group(),
            "expert_dp": state.get_expert_data_parallel_group(),
        }
        self._names = {g.group_name: n for n, g in groups.items() if dist.get_world_size(g) > 1}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            group = next(
                dist.ProcessGroup.unbox(a) for a in args if isinstance(a, torch.ScriptObject)
            )
            kind = _kind(func._schema.name)
            # Of two stages the second sends over a group of its own: only pipelines send at all.
            name = "pp" if kind and kind[0] == "send" else self._names.get(group.group_name)
            if name and kind:
                self.nbytes[name, kind[0]] += kind[1](args, group.size())
        return func(*args, **(kwargs or {}))


def _kind(operation: str):
    """(name in the plan, bytes of the whole from the arguments) of a dispatched collective."""
    return {
        "c10d::allreduce_": ("all_reduce", lambda args, g: _nbytes(args[0])),
        "c10d::allreduce_coalesced_": ("all_reduce", lambda args, g: _nbytes(args[0])),
        "c10d::_allgather_base_": ("all_gather", lambda args, g: _nbytes(args[0])),
        "c10d::allgather_into_tensor_coalesced_": ("all_gather", lambda args, g: _nbytes(args[0])),
        "c10d::allgather_": ("all_gather", lambda args, g: _nbytes(args[1]) * g),
        "c10d::_reduce_scatter_base_": ("reduce_scatter", lambda args, g: _nbytes(args[1])),
        "c10d::reduce_scatter_tensor_coalesced_": (
            "reduce_scatter",
            lambda args, g: _nbytes(args[1]),
        ),
        "c10d::alltoall_base_": ("all_to_all", lambda args, g: _nbytes(args[1])),
        "c10d::alltoall_": ("all_to_all", lambda args, g: _nbytes(args[1])),
        "c10d::send": ("send", lambda args, g: _nbytes(args[0])),
    }.get(operation)


def _nbytes(value) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(_nbytes(one) for one in value)
