"""Builds models on the meta device as ranks of a run that does not exist, in any layout."""

from math import prod

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from alp_megatron.config.schema import Config


class _OnMeta(TorchFunctionMode):
    """Megatron names the current device where it makes a tensor: here that is meta."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def stages(config, place, configs: list[Config]) -> list[list[dict[str, int]]]:
    """For each configuration and pipeline stage, what its first rank holds.

    Parameters by their kind: 'split' over TP, 'replicated' over it, 'expert', 'sigma'.
    """
    from alp_megatron.runtime.mesh import leave

    result = []
    for wanted in configs:
        held = []
        for stage in range(wanted.model.pipeline_model_parallel_size):
            leave()  # the last one that we join is left by the worker
            _join(wanted, stage)
            held.append(_held(wanted))
        result.append(held)
    return result


def _join(config: Config, stage: int) -> None:
    """As runtime.mesh.join, but with a group of which this is the only real rank."""
    from megatron.core import parallel_state, tensor_parallel
    from torch.testing._internal.distributed.fake_pg import FakeStore

    model, world = config.model, config.runtime.world_size
    first = stage * (world // model.pipeline_model_parallel_size)
    dist.init_process_group("fake", store=FakeStore(), rank=first, world_size=world)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=model.tensor_model_parallel_size,
        pipeline_model_parallel_size=model.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=model.virtual_pipeline_model_parallel_size,
        expert_model_parallel_size=model.expert_model_parallel_size,
        expert_tensor_parallel_size=1,
        create_gloo_process_groups=False,
    )
    assert parallel_state.get_pipeline_model_parallel_rank() == stage
    tensor_parallel.model_parallel_cuda_manual_seed(1)


def _held(config: Config) -> dict[str, int]:
    from alp_megatron.model.policy import build_model

    with torch.device("meta"), _OnMeta():
        chunks = build_model(config)
    counts = dict.fromkeys(("split", "replicated", "expert", "sigma"), 0)
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            assert parameter.is_meta, name
            counts[_kind(name, parameter)] += prod(parameter.shape)
    return counts


def _kind(name: str, parameter) -> str:
    if name.endswith("log_sigma_scale"):
        return "sigma"
    if not getattr(parameter, "allreduce", True):
        return "expert"
    return "split" if getattr(parameter, "tensor_model_parallel", False) else "replicated"
