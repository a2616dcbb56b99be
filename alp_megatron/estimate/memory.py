"""Memory of a training process: parameters, optimizer, activations."""

from dataclasses import dataclass, fields, replace
from math import prod
from typing import Literal

from alp_megatron.config.layout import data_parallel_size, num_microbatches, smallest_world_size
from alp_megatron.config.schema import Config
from alp_megatron.hf.shape import ModelShape


@dataclass(frozen=True)
class Held:
    """Parameters of one rank: slices over TP, whole tensors, and whole experts of its share.

    `dp` and `expert_dp` are the ranks that hold the same dense part, and the same experts.
    """

    split: int
    replicated: int
    expert: int
    dp: int
    expert_dp: int

    @property
    def dense(self) -> int:
        return self.split + self.replicated

    @property
    def total(self) -> int:
        return self.dense + self.expert


def held_by_stage(config: Config, shape: ModelShape) -> list[Held]:
    """Returns what a rank of each pipeline stage holds, each layer's sigma included."""
    model = config.model
    tp, pp, ep = (
        model.tensor_model_parallel_size,
        model.pipeline_model_parallel_size,
        model.expert_model_parallel_size,
    )
    dp = data_parallel_size(config)
    layer = _by_kind(replace(shape, num_hidden_layers=1).tensor_shapes(), "model.layers.")
    layers = shape.num_hidden_layers // pp
    table = -(-shape.vocab_size // tp) * shape.hidden_size  # padded to a multiple of TP
    stages = []
    for stage in range(pp):
        last = stage == pp - 1
        # A tied table stands at both ends of a pipeline, but once where there is one stage.
        tables = (stage == 0) + (last and not (shape.tie_word_embeddings and pp == 1))
        stages.append(
            Held(
                split=layers * layer["split"] // tp + tables * table,
                replicated=layers * (layer["replicated"] + 1) + last * shape.hidden_size,
                expert=layers * layer["expert"] // ep,
                dp=dp,
                expert_dp=max(1, tp * dp // ep),
            )
        )
    return stages


def _by_kind(shapes: dict[str, tuple[int, ...]], prefix: str) -> dict[str, int]:
    counts = {"split": 0, "replicated": 0, "expert": 0}
    for name, shape in shapes.items():
        if name.startswith(prefix):
            counts[_kind(name)] += prod(shape)
    return counts


def _kind(name: str) -> str:
    if ".experts." in name:
        return "expert"
    whole = ("norm.weight", "mlp.gate.weight", "o_proj.bias", "down_proj.bias")
    return "replicated" if name.endswith(whole) else "split"


# What the forward pass keeps for the backward pass, and what the backward pass needs besides.
#
# Korthikanti et al. 2022 ("Reducing activation recomputation in large transformer models") count
# the tensors that each operation of a layer saves. Here the same is counted for this project's
# layers: RMSNorm, grouped heads, rotary embeddings, a gated MLP without fusion, attention that
# keeps no score matrix. docs/plan.md has the table, and what was measured of it.

Kernels = Literal["te", "torch"]  # Transformer Engine's on GPUs, plain torch on CPUs


@dataclass(frozen=True)
class Row:
    """Describes the row of tokens that a micro-batch is, on one rank."""

    tokens: int  # on every rank of the TP group, where it is not split
    predicted: int
    itemsize: int  # bytes of an activation


def longest_row(config: Config) -> Row:
    """Returns a micro-batch of samples of full length; all but a token of each is predicted."""
    samples, length = config.trainer.micro_batch_size, config.rollout.max_model_len
    itemsize = 2 if config.model.params_dtype == "bfloat16" else 4
    return Row(samples * length, samples * (length - 1), itemsize)


def kept_by_layer(config: Config, shape: ModelShape, row: Row, kernels: Kernels) -> int:
    """Returns the bytes that one layer without full recomputation keeps of a micro-batch."""
    tp = config.model.tensor_model_parallel_size
    whole = tp if config.model.sequence_parallel else 1  # ranks over which whole rows are split
    h, d = shape.hidden_size, shape.head_dim
    q, kv = (n * d for n in (shape.num_attention_heads, shape.num_key_value_heads))
    norm = 3 * h if kernels == "torch" else 2 * h  # its input and output; torch: x / rms as well
    packed = kernels == "torch" and config.model.recompute_granularity == "none"
    # Rotated queries and keys, the matrix of queries, keys and values that the values are a view
    # of, and the output; torch: copies of all four in rectangles in place of the first three.
    attention = 3 * q + (2 if packed else 3) * kv
    elements = 2 * norm / whole + attention / tp + 4 * d  # 4 d: cosines and sines, of q and of k
    return int(row.tokens * row.itemsize * (elements + _mlp(shape, tp, whole)))


def _mlp(shape: ModelShape, tp: int, whole: int) -> float:
    """Elements a token. The gated MLP keeps gate and up, silu(gate), a copy of up, the product."""
    if shape.experts is None:
        return 5 * shape.intermediate_size / tp
    experts, h = shape.experts, shape.hidden_size
    # Routed to k experts: the token before and after it is sorted, its way there and back, and
    # the router's fp32 logits, weights and map. Experts are whole, and tokens evenly spread.
    routed = experts.num_experts_per_tok * (4 * h + 6 * experts.moe_intermediate_size)
    return (routed + 4 * experts.num_experts) / whole


def layer_input(config: Config, shape: ModelShape, row: Row) -> int:
    """Returns the bytes of a layer's input, which is what full recomputation keeps of it."""
    whole = config.model.tensor_model_parallel_size if config.model.sequence_parallel else 1
    size = 4 if config.model.fp32_residual_connection else row.itemsize
    return row.tokens * shape.hidden_size * size // whole


def kept_by_stage(
    config: Config, shape: ModelShape, row: Row, kernels: Kernels, stage: int, micro_batches: int
) -> int:
    """Returns the bytes of all micro-batches in flight at their highest, on a rank of a stage."""
    model = config.model
    layers = shape.num_hidden_layers / model.pipeline_model_parallel_size
    in_flight = _in_flight(config, stage, micro_batches)  # in micro-batches of the whole stage
    if model.recompute_granularity == "full":
        one = kept_by_layer(config, shape, row, kernels)
        return int(layers * in_flight * layer_input(config, shape, row)) + one
    return int(layers * in_flight * kept_by_layer(config, shape, row, kernels))


def _in_flight(config: Config, stage: int, micro_batches: int) -> float:
    """Forward passes ahead of their backward pass: 1F1B's, or the interleaved schedule's."""
    pp = config.model.pipeline_model_parallel_size
    chunks = config.model.virtual_pipeline_model_parallel_size
    if chunks is None:
        return min(pp - stage, micro_batches)
    # Megatron's warm-up: 2 (PP - 1 - stage) + (chunks - 1) PP passes of a chunk, and the next one.
    ahead = 2 * (pp - stage - 1) + (chunks - 1) * pp + 1
    return min(ahead / chunks, micro_batches)


def received_rows(config: Config, shape: ModelShape, row: Row, stage: int) -> int:
    """Returns the bytes of the last row from the stage before and of its gradient, by each chunk of
    a rank.

    They outlive the update, until the next one's take their place.
    """
    if config.model.pipeline_model_parallel_size == 1:
        return 0
    chunks = config.model.virtual_pipeline_model_parallel_size or 1
    return 2 * (chunks - (stage == 0)) * layer_input(config, shape, row)


def backward_of_layer(config: Config, shape: ModelShape, row: Row) -> int:
    """Bytes besides: gradients of gate, up and two hidden states, and the row gathered over TP."""
    tp = config.model.tensor_model_parallel_size
    whole = tp if config.model.sequence_parallel else 1
    if shape.experts is None:
        widest = 2 * shape.intermediate_size / tp
    else:
        widest = 2 * shape.experts.num_experts_per_tok * shape.hidden_size / whole
    elements = widest + 2 * shape.hidden_size / whole
    gathered = shape.hidden_size if config.model.sequence_parallel else 0
    return int(row.tokens * row.itemsize * (elements + gathered))


def head(config: Config, shape: ModelShape, row: Row, kernels: Kernels) -> tuple[int, int]:
    """Returns (bytes that norm and head keep, bytes of a chunk of logits and the output's
    gradient).
    """
    tp, h = config.model.tensor_model_parallel_size, shape.hidden_size
    whole = tp if config.model.sequence_parallel else 1
    norm = (2 if kernels == "torch" else 1) * h / whole
    kept = int(row.itemsize * (row.tokens * norm + row.predicted * h))
    rows = min(config.model.logprob_chunk_tokens, row.predicted)
    slice_of_vocabulary = -(-shape.vocab_size // tp)
    logits = rows * slice_of_vocabulary * 12  # fp32: logits, their exponentials, a product
    gradient = slice_of_vocabulary * h * (4 + row.itemsize)  # its fp32 sum, and a chunk's part
    return kept, logits + gradient + row.predicted * h * row.itemsize


SYNC_BUCKET = 64 * 2**20


@dataclass(frozen=True)
class TrainerMemory:
    """Holds the bytes of a training rank at the peak of an update. Bytes."""

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
    """Returns the memory of a rank of each pipeline stage."""
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
