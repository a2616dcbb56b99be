"""Bytes on one GPU, by what they are for."""

from dataclasses import dataclass, fields

from alp_megatron.config.layout import num_microbatches, smallest_world_size
from alp_megatron.config.model_shape import ModelShape
from alp_megatron.config.schema import Config
from alp_megatron.plan.activations import (
    Kernels,
    backward_of_layer,
    head,
    kept_by_stage,
    longest_row,
    received_rows,
)
from alp_megatron.plan.parameters import Held, held_by_stage

SYNC_BUCKET = 64 * 2**20


@dataclass(frozen=True)
class TrainerMemory:
    """Of a training rank at the peak of an update. Bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    sync: int

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))


def trainer_memory(
    config: Config, shape: ModelShape, kernels: Kernels = "te"
) -> list[TrainerMemory]:
    """For a rank of each pipeline stage."""
    return [
        _stage_memory(config, shape, held, stage, kernels)
        for stage, held in enumerate(held_by_stage(config, shape))
    ]


def _stage_memory(
    config: Config, shape: ModelShape, held: Held, stage: int, kernels: Kernels
) -> TrainerMemory:
    row = longest_row(config)
    kept = kept_by_stage(config, shape, row, kernels, stage, num_microbatches(config))
    working = backward_of_layer(config, shape, row)
    kept += received_rows(config, shape, row, stage)
    activations, logits = kept + working, 0
    if stage == config.model.pipeline_model_parallel_size - 1:
        # The head's backward pass is over before that of a layer begins: the larger counts.
        norm_and_hidden, chunk = head(config, shape, row, kernels)
        at_head = norm_and_hidden + chunk
        if at_head > working:
            activations, logits = kept + norm_and_hidden, chunk
    return TrainerMemory(
        weights=held.total * row.itemsize,
        gradients=held.total * 4,  # summed in fp32
        optimizer=_optimizer(config, held),
        activations=activations,
        logits=logits,
        sync=2 * _largest_message(config, shape, held),
    )


def _optimizer(config: Config, held: Held) -> int:
    """Adam's two moments in fp32, and fp32 weights beside bfloat16 ones; over DP if distributed."""
    each = 8 + (4 if config.model.params_dtype == "bfloat16" else 0)
    if not config.trainer.use_distributed_optimizer:
        return each * held.total
    return each * held.dense // held.dp + each * held.expert // held.expert_dp


def _largest_message(config: Config, shape: ModelShape, held: Held) -> int:
    """A bucket of the weight export, or a tensor that is larger (the embedding)."""
    if smallest_world_size(config) == 1:
        return 0  # nothing to gather
    itemsize = 2 if config.rollout.dtype == "bfloat16" else 4
    table = shape.vocab_size * shape.hidden_size * itemsize
    return min(max(SYNC_BUCKET, table), held.total * itemsize)
