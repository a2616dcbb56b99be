"""What the forward pass keeps for the backward pass, and what the backward pass needs besides.

Korthikanti et al. 2022 ("Reducing activation recomputation in large transformer models") count the
tensors that each operation of a layer saves. Here the same is counted for this project's layers:
RMSNorm, grouped heads, rotary embeddings, a gated MLP without fusion, attention that keeps no score
matrix. docs/plan.md has the table, and what was measured of it.
"""

from dataclasses import dataclass
from typing import Literal

from alp_megatron.config.model_shape import ModelShape
from alp_megatron.config.schema import Config

Kernels = Literal["te", "torch"]  # Transformer Engine's on GPUs, plain torch on CPUs


@dataclass(frozen=True)
class Row:
    """The row of tokens that a micro-batch is, on one rank."""

    tokens: int  # on every rank of the TP group, where it is not split
    predicted: int
    itemsize: int  # bytes of an activation


def longest_row(config: Config) -> Row:
    """A micro-batch of samples of full length; all but a token of each is predicted."""
    samples, length = config.trainer.micro_batch_size, config.rollout.max_model_len
    itemsize = 2 if config.model.params_dtype == "bfloat16" else 4
    return Row(samples * length, samples * (length - 1), itemsize)


def kept_by_layer(config: Config, shape: ModelShape, row: Row, kernels: Kernels) -> int:
    """Bytes that one layer without full recomputation keeps of a micro-batch."""
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
    """Bytes of a layer's input, which is what full recomputation keeps of it."""
    whole = config.model.tensor_model_parallel_size if config.model.sequence_parallel else 1
    size = 4 if config.model.fp32_residual_connection else row.itemsize
    return row.tokens * shape.hidden_size * size // whole


def kept_by_stage(
    config: Config, shape: ModelShape, row: Row, kernels: Kernels, stage: int, micro_batches: int
) -> int:
    """Bytes of all micro-batches in flight at their highest, on a rank of a stage."""
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
    """Bytes of the last row from the stage before and of its gradient, by each chunk of a rank.

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
    """(bytes that norm and head keep, bytes of a chunk of logits and the output's gradient)."""
    tp, h = config.model.tensor_model_parallel_size, shape.hidden_size
    whole = tp if config.model.sequence_parallel else 1
    norm = (2 if kernels == "torch" else 1) * h / whole
    kept = int(row.itemsize * (row.tokens * norm + row.predicted * h))
    rows = min(config.model.logprob_chunk_tokens, row.predicted)
    slice_of_vocabulary = -(-shape.vocab_size // tp)
    logits = rows * slice_of_vocabulary * 12  # fp32: logits, their exponentials, a product
    gradient = slice_of_vocabulary * h * (4 + row.itemsize)  # its fp32 sum, and a chunk's part
    return kept, logits + gradient + row.predicted * h * row.itemsize
