"""Bytes that a rank sends to others of each parallel group in one step of training.

Volumes are those of ring algorithms: of g ranks, an all-gather or a reduce-scatter of n bytes in
all sends n (g - 1) / g from each, an all-reduce twice that, an all-to-all of n bytes a rank
n (g - 1) / g. `Calls` counts the n; `sent` applies the algorithm.
"""

from collections import Counter
from dataclasses import dataclass, field

from alp_megatron.config.layout import data_parallel_size, num_microbatches
from alp_megatron.config.methods import needs_old_logprobs
from alp_megatron.config.schema import Config
from alp_megatron.estimate.memory import Held, Row, held_by_stage, longest_row
from alp_megatron.hf.shape import ModelShape

# Bytes sent by one rank for n bytes of the whole, as a share of n.
_RING = {
    "all_reduce": lambda g: 2 * (g - 1) / g,
    "all_gather": lambda g: (g - 1) / g,
    "reduce_scatter": lambda g: (g - 1) / g,
    "all_to_all": lambda g: (g - 1) / g,
    "send": lambda g: 1.0,
}


@dataclass
class Traffic:
    """Collects what one rank takes part in: bytes by (group, operation), and the groups' sizes.

    Groups are 'tp', 'pp', 'dp', 'ep' and 'expert_dp'; operations those of `_RING`.
    """

    sizes: dict[str, int]
    nbytes: Counter = field(default_factory=Counter)

    def add(self, group: str, operation: str, nbytes: float) -> None:
        if self.sizes[group] > 1 and nbytes:
            self.nbytes[group, operation] += int(nbytes)

    def sent(self, group: str) -> float:
        """Returns the bytes that the rank sends within a group."""
        size = self.sizes[group]
        return sum(n * _RING[op](size) for (of, op), n in self.nbytes.items() if of == group)


def update_traffic(config: Config, shape: ModelShape, stage: int = 0) -> Traffic:
    """Returns the traffic of one optimizer update, for a rank of a pipeline stage."""
    model = config.model
    traffic = _none(config)
    held = held_by_stage(config, shape)[stage]
    passes = 2 if model.recompute_granularity == "full" else 1  # forward passes of a layer
    _layers_and_ends(traffic, config, shape, stage, num_microbatches(config), passes, True)
    _gradients(traffic, config, shape, held, stage)
    return traffic


def logprob_traffic(config: Config, shape: ModelShape, stage: int = 0) -> Traffic:
    """Returns the traffic of the forward pass over a step's samples that old log-probabilities
    take.
    """
    traffic = _none(config)
    batches = num_microbatches(config) * updates_per_step(config)
    _layers_and_ends(traffic, config, shape, stage, batches, 1, False)
    return traffic


def step_traffic(config: Config, shape: ModelShape, stage: int = 0) -> Traffic:
    """A whole step: its updates, and the pass at the old weights where there is one."""
    total = _none(config)
    for key, nbytes in update_traffic(config, shape, stage).nbytes.items():
        total.nbytes[key] = nbytes * updates_per_step(config)
    share = extra_passes(config)
    for key, nbytes in logprob_traffic(config, shape, stage).nbytes.items():
        total.nbytes[key] += int(nbytes * share)
    return total


def updates_per_step(config: Config) -> int:
    rollout = config.rollout
    samples = rollout.prompts_per_step * rollout.samples_per_prompt
    return samples // config.trainer.global_batch_size


def extra_passes(config: Config) -> float:
    """Forward passes before the updates of a step, on average: the method's, or the metrics'."""
    if needs_old_logprobs(config.objective):
        return 1.0
    interval = config.logging.clean_mismatch_interval
    return 1 / interval if interval else 0.0


def _none(config: Config) -> Traffic:
    model, dp = config.model, data_parallel_size(config)
    tp, ep = model.tensor_model_parallel_size, model.expert_model_parallel_size
    return Traffic(
        {
            "tp": tp,
            "pp": model.pipeline_model_parallel_size,
            "dp": dp,
            "ep": ep,
            "expert_dp": tp * dp // ep,
        }
    )


def _layers_and_ends(traffic, config, shape, stage, micro_batches, passes, backward) -> None:
    """Activations and their gradients, over TP, EP and PP."""
    model, row = config.model, longest_row(config)
    layers = shape.num_hidden_layers // model.pipeline_model_parallel_size
    first, last = stage == 0, stage == model.pipeline_model_parallel_size - 1
    states = row.tokens * shape.hidden_size * row.itemsize * micro_batches
    halves = 2 if shape.experts is None else 1  # attention and MLP; experts are not split over TP
    if model.sequence_parallel:
        # Before a half the rows are gathered, after it summed and scattered; the backward pass
        # mirrors both, and gathers the input once more for the weights' gradient.
        gathers = halves * layers * (passes + 2 * backward) + last + first * backward
        scatters = halves * layers * (passes + backward) + first + last * backward
        traffic.add("tp", "all_gather", gathers * states)
        traffic.add("tp", "reduce_scatter", scatters * states)
    else:
        sums = halves * layers * (passes + backward) + first + last * backward
        traffic.add("tp", "all_reduce", sums * states)
    if last:  # maximum, sum, weighted sum and target's logit of each predicted token, in fp32
        parts = 4 * 4 * row.predicted * micro_batches
        traffic.add("tp", "all_gather", parts * model.tensor_model_parallel_size)
    if shape.experts is not None:
        _experts(traffic, config, shape, row, layers * micro_batches * (passes + backward))
    chunks = model.virtual_pipeline_model_parallel_size or 1
    whole = model.tensor_model_parallel_size if model.sequence_parallel else 1
    onwards = chunks - last  # the last chunk of the last stage has nobody to send to
    back = (chunks - first) * backward
    traffic.add("pp", "send", (onwards + back) * states / whole)


def _experts(traffic: Traffic, config: Config, shape: ModelShape, row: Row, times: float) -> None:
    """Every token goes to its experts and comes back, with its weights; each rank has its rows."""
    assert shape.experts is not None
    tp = config.model.tensor_model_parallel_size
    copies = row.tokens / tp * shape.experts.num_experts_per_tok
    traffic.add("ep", "all_to_all", times * 2 * copies * shape.hidden_size * row.itemsize)
    traffic.add("ep", "all_to_all", times * copies * 4)


def _gradients(traffic: Traffic, config: Config, shape: ModelShape, held: Held, stage: int) -> None:
    """fp32 gradients over the replicas, and the new weights back where the optimizer is split."""
    itemsize = 2 if config.model.params_dtype == "bfloat16" else 4
    # Experts have an optimizer of their own, and each of the two gathers the weights of both.
    gathers = 1 if shape.experts is None else 2
    for group, count in (("dp", held.dense), ("expert_dp", held.expert)):
        if config.trainer.use_distributed_optimizer:
            traffic.add(group, "reduce_scatter", 4 * count)
            traffic.add(group, "all_gather", gathers * itemsize * count)
        else:
            traffic.add(group, "all_reduce", 4 * count)
    if config.model.sequence_parallel:  # norms, routers and sigmas: each rank saw its rows only
        traffic.add("tp", "all_reduce", 4 * held.replicated)
    pp = config.model.pipeline_model_parallel_size
    if shape.tie_word_embeddings and stage in (0, pp - 1):  # the table at both ends
        rows = -(-shape.vocab_size // config.model.tensor_model_parallel_size)
        traffic.sizes.setdefault("embedding", min(2, pp))
        traffic.add("embedding", "all_reduce", 4 * rows * shape.hidden_size)
