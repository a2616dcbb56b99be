"""One policy update over the whole run's ranks."""

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alp_megatron.config.methods import METHODS
from alp_megatron.data.microbatch import MicroBatch
from alp_megatron.data.minibatch import MiniBatch, as_sequence
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.learner.learner import Learner, gather_from_replicas, replica_microbatches
from alp_megatron.metrics.counts import Counts
from alp_megatron.objectives.loss import policy_objective
from alp_megatron.perturbation import NoiseKey


@dataclass
class UpdateRecord:
    """What one update computed over the global mini-batch; the same on every rank.

    Attributes:
        tokens: arrays over the unmasked and masked response tokens, ordered by sample id:
            `logprobs`, `entropies`, `log_ratio`, `clip_low`, `clip_high`, `dual_clip`, and
            `weight`, `kept` where the objective has a correction.
        loss: the global loss.
        counts: see `metrics.counts`, over all ranks.
        clean: the same arrays without the noise, at the weights that the update started from;
            None where that was not asked for.
        clean_seconds: what they took, as this rank sees it.
    """

    tokens: dict[str, np.ndarray]
    loss: float
    grad_norm: float
    skipped: bool
    counts: Counter[str]
    clean: dict[str, np.ndarray] | None = None
    clean_seconds: float = 0.0


def update_policy(
    learner: Learner,
    trajectories: list[Trajectory],
    old_logprobs: dict[int, Tensor] | None,
    key: NoiseKey,
    *,
    measure_clean: bool = False,
) -> UpdateRecord:
    """One optimizer update on one mini-batch. A collective call of the whole run.

    Args:
        old_logprobs: by sample id; may be None where `needs_old_logprobs` says so.
        measure_clean: fill in the record's `clean`, by one more forward if the method has noise.
    """
    config = learner.config
    method = METHODS[config.objective.method]
    data = MiniBatch.of(config.objective, trajectories, old_logprobs)
    batches = replica_microbatches(learner, [as_sequence(t) for t in trajectories])

    def observe(logprobs: Tensor, entropies: Tensor, batch: MicroBatch):
        inputs = data.loss_inputs(logprobs, batch)
        output = policy_objective(config.objective, inputs)
        tokens = {
            "sample_id": _per_token(batch),
            "logprobs": logprobs,
            "entropies": entropies,
            "log_ratio": output.log_ratio,
            "clip_low": output.clip_low,
            "clip_high": output.clip_high,
            "dual_clip": output.dual_clip,
        }
        if inputs.correction is not None:
            tokens["weight"], tokens["kept"] = inputs.correction.weight, inputs.correction.kept
        return output.loss, {name: t.detach().cpu().numpy() for name, t in tokens.items()}

    def loss(*output):
        value, tokens = observe(*output)
        return value, {"tokens": tokens, "loss": float(value.detach())}

    # A sample is enough: it costs two more norms and roundings in every layer.
    batches[0].counts.of_fp8 = config.model.fp8 is not None and key.update == 0
    started, clean = time.perf_counter(), None
    if measure_clean and method.perturbed:
        seen = learner.forward(batches, config.rollout.temperature, lambda *o: observe(*o)[1])
        clean = _by_sample(gather_from_replicas(seen))
    clean_seconds = time.perf_counter() - started

    noise = key if method.perturbed else None
    result = learner.update(batches, config.rollout.temperature, loss, noise)

    kept = gather_from_replicas(result.kept)
    tokens = _by_sample([k["tokens"] for k in kept])
    return UpdateRecord(
        tokens,
        sum(k["loss"] for k in kept),
        result.grad_norm,
        result.skipped,
        Counts.over_all_ranks([batch.counts for batch in batches]),
        clean=tokens if measure_clean and not method.perturbed else clean,
        clean_seconds=clean_seconds,
    )


def _per_token(batch: MicroBatch) -> Tensor:
    ids = torch.tensor(batch.sequence_sample_ids, device=batch.sequence_index.device)
    return ids[batch.sequence_index]


def _by_sample(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    order = np.argsort(joined["sample_id"], kind="stable")
    return {name: values[order] for name, values in joined.items()}
