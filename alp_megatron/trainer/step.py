"""Makes the updates of one step over the whole run's ranks: for a run, a probe and the tests."""

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alp_megatron.config.methods import METHODS, needs_old_logprobs
from alp_megatron.data.microbatch import MicroBatch
from alp_megatron.data.minibatch import MiniBatch, as_sequence, minibatches
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.learner.learner import (
    Learner,
    gather_from_replicas,
    replica_microbatches,
    token_logprobs,
)
from alp_megatron.learner.optimizer import log_scales, sigmas
from alp_megatron.metrics.counts import Counts
from alp_megatron.objectives.loss import policy_objective
from alp_megatron.perturbation import NoiseKey
from alp_megatron.runtime.device import on_device
from alp_megatron.trainer.fp8_metrics import fp8_mismatch, fp8_update_metrics


@dataclass
class UpdateRecord:
    """Holds what one update computed over the global mini-batch; the same on every rank.

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


@dataclass
class StepResult:
    """Holds what the updates of one step did; the same on every rank but for the seconds.

    Attributes:
        logprobs_before: of the unperturbed policy before the first update, by sample id; None
            where nothing needed them. The policy is the one that sampled, unless the engine lags
            (rollout.sync_interval).
        minibatches, updates: one of each for an update, in order.
        sigmas: the noise scales by layer after each update; zeros where the method has no noise.
        fp8_metrics: see `trainer.fp8_metrics`; empty without `model.fp8`.
        seconds: parts of the step as this rank sees them. `old_logprobs` or `clean_logprobs` is
            the pass that makes `logprobs_before`, the first where the method needs them, the
            second where only the metrics do; `envelope` is what every update's `clean` took.
    """

    logprobs_before: dict[int, Tensor] | None
    minibatches: list[list[Trajectory]]
    updates: list[UpdateRecord]
    sigmas: list[list[float]]
    fp8_metrics: dict[str, float]
    seconds: dict[str, float]

    @property
    def counts(self) -> Counter[str]:
        return sum_counts(self.updates)


def update_step(
    learner: Learner,
    trajectories: list[Trajectory],
    step: int,
    *,
    measure_before: bool = False,
    measure_clean: bool = False,
) -> StepResult:
    """Makes one update on each mini-batch of a step's samples. Collective.

    How the samples are dealt and the noise are functions of the seed and `step` alone.

    Args:
        measure_before: fill in `logprobs_before` also where the method needs none.
        measure_clean: fill in every update's `clean`.
    """
    config, needed = learner.config, needs_old_logprobs(learner.config.objective)
    seconds = {"old_logprobs": 0.0, "clean_logprobs": 0.0}
    before = None
    if needed or measure_before:
        started = time.perf_counter()
        sequences = [as_sequence(t) for t in trajectories]
        before = token_logprobs(learner, sequences, config.rollout.temperature)
        seconds["old_logprobs" if needed else "clean_logprobs"] = time.perf_counter() - started
    fp8_metrics = fp8_mismatch(learner, trajectories, before)

    sigma0 = config.perturbation.sigma0 if METHODS[config.objective.method].perturbed else 0.0
    dealt = minibatches(trajectories, config.trainer.global_batch_size, config.seed, step)
    updates, scales = [], []
    for index, minibatch in enumerate(dealt):
        key = NoiseKey(config.seed, step, index)
        update = update_policy(learner, minibatch, before, key, measure_clean=measure_clean)
        updates.append(update)
        scales.append(log_scales(learner.chunks))
    fp8_metrics |= fp8_update_metrics(learner, sum_counts(updates))
    seconds["envelope"] = sum(update.clean_seconds for update in updates)
    return StepResult(before, dealt, updates, sigmas(scales, sigma0), fp8_metrics, seconds)


def update_policy(
    learner: Learner,
    trajectories: list[Trajectory],
    old_logprobs: dict[int, Tensor] | None,
    key: NoiseKey,
    *,
    measure_clean: bool = False,
) -> UpdateRecord:
    """Makes one optimizer update on one mini-batch. Collective.

    Args:
        old_logprobs: by sample id; may be None where `needs_old_logprobs` says so.
        measure_clean: fill in the record's `clean`, by one more forward if the method has noise.
    """
    config = learner.config
    method = METHODS[config.objective.method]
    data = MiniBatch.of(config.objective, trajectories, old_logprobs)
    batches = replica_microbatches(learner, [as_sequence(t) for t in trajectories])
    # Made beforehand, and looked at afterwards: in between nothing waits for the device.
    inputs_of = {id(batch): data.loss_inputs(batch) for batch in batches}

    def observe(logprobs: Tensor, entropies: Tensor, batch: MicroBatch):
        inputs = inputs_of[id(batch)](logprobs)
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
        return output.loss, {name: t.detach() for name, t in tokens.items()}

    def loss(*output):
        value, tokens = observe(*output)
        return value, {"tokens": tokens, "loss": value.detach()}

    # A sample is enough: it costs two more norms and roundings in every layer.
    batches[0].counts.of_fp8 = config.model.fp8 is not None and key.update == 0
    started, clean = time.perf_counter(), None
    if measure_clean and method.perturbed:
        seen = learner.forward(batches, config.rollout.temperature, lambda *o: observe(*o)[1])
        clean = _by_sample(gather_from_replicas([_on_host(tokens) for tokens in seen]))
    clean_seconds = time.perf_counter() - started

    noise = key if method.perturbed else None
    result = learner.update(batches, config.rollout.temperature, loss, noise)

    kept = gather_from_replicas(
        [{"tokens": _on_host(k["tokens"]), "loss": float(k["loss"])} for k in result.kept]
    )
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


def sum_counts(updates: list[UpdateRecord]) -> Counter[str]:
    return sum((update.counts for update in updates), Counter())


def _per_token(batch: MicroBatch) -> Tensor:
    ids = on_device(batch.sequence_sample_ids, torch.int64, batch.sequence_index.device)
    return ids[batch.sequence_index]


def _on_host(tokens: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: values.cpu().numpy() for name, values in tokens.items()}


def _by_sample(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    order = np.argsort(joined["sample_id"], kind="stable")
    return {name: values[order] for name, values in joined.items()}
