"""One step's record: every metric over the step's whole batch, computed exactly, once."""

import numpy as np
import torch
import torch.distributed as dist

from alp_megatron.config.schema import Config
from alp_megatron.data.minibatch import as_sequence
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.fp8.linear import EmulatedFp8
from alp_megatron.fp8.recipes import OPERANDS, without_fp8
from alp_megatron.learner.learner import Learner, token_logprobs
from alp_megatron.metrics.tokens import (
    TokenRatios,
    correction_metrics,
    mismatch_metrics,
    ratio_metrics,
)
from alp_megatron.trainer.step import UpdateRecord


def has_envelope(config: Config, step: int) -> bool:
    """Whether the step, counted from 0, writes envelopes/ and the metrics of `envelope_keys`."""
    interval, done = config.logging.envelope_interval, step + 1
    return interval > 0 and (done % interval == 0 or done == config.trainer.steps)


def token_ratios(trajectories: list[Trajectory], updates: list[UpdateRecord]) -> TokenRatios:
    """The sampled tokens of the updates that were made, update after update, by sample id.

    Args:
        trajectories: at least those that the updates trained on.
        updates: in order, each with its `clean` arrays.
    """
    by_id = {t.sample_id: t for t in trajectories}
    parts = [
        _of_update(by_id, index, update)
        for index, update in enumerate(updates)
        if not update.skipped  # it may hold numbers that are not finite
    ]
    return TokenRatios(
        *(np.concatenate(arrays) for arrays in zip(*parts or [_NOTHING], strict=True))
    )


_NOTHING = (np.zeros(0, np.int64), np.zeros(0, np.int32), *[np.zeros(0, np.float32)] * 3)


def _of_update(by_id: dict[int, Trajectory], index: int, update: UpdateRecord) -> tuple:
    """The fields of TokenRatios, in their order."""
    assert update.clean is not None
    sample_id = update.tokens["sample_id"]
    members = [by_id[i] for i in np.unique(sample_id).tolist()]
    sampled = np.concatenate([t.loss_mask for t in members]) > 0
    rollout = np.concatenate([t.rollout_logprobs for t in members])
    return (
        sample_id[sampled].astype(np.int64),
        np.full(sampled.sum(), index, np.int32),
        rollout[sampled].astype(np.float32),
        update.clean["logprobs"][sampled].astype(np.float32),
        update.tokens["logprobs"][sampled].astype(np.float32),
    )


SAMPLES = 64  # whose log-probabilities are computed in high precision as well


def fp8_mismatch(
    learner: Learner, trajectories: list[Trajectory], clean: dict | None
) -> dict[str, float]:
    """`fp8/k3` and `fp8/abs_diff_mean` of the FP8 policy, whose log-probabilities `clean` holds,
    against the same weights in high precision; of the first samples. Collective."""
    if learner.config.model.fp8 is None or clean is None:
        return {}
    few = sorted(trajectories, key=lambda t: t.sample_id)[:SAMPLES]
    temperature = learner.config.rollout.temperature
    with without_fp8(learner.policy_config):
        high = token_logprobs(learner, [as_sequence(t) for t in few], temperature)
    fp8, high = (np.concatenate([p[t.sample_id].numpy() for t in few]) for p in (clean, high))
    mask = np.concatenate([t.loss_mask for t in few])
    found = mismatch_metrics(fp8, high, mask, np.zeros(len(mask), dtype=int), "fp8")
    return {name: found[name] for name in ("fp8/k3", "fp8/abs_diff_mean")}


def fp8_update_metrics(learner: Learner, updates: list[UpdateRecord]) -> dict[str, float]:
    """Of the step's updates, over all layers and ranks. Collective.

    alp/fp8_surviving_fraction: see `fp8.linear`; of one micro-batch of the first update.
    fp8/amax_*: the largest absolute value of the linear layers' operands (emulation only).
    fp8/amax_growth_*: the largest amax over what its scale, made of earlier ones, has room for;
        above 1 the largest values saturated (emulation of the delayed recipe only).
    """
    if learner.config.model.fp8 is None:
        return {}
    metrics = {}
    total = sum(u.fp8_total for u in updates)
    if total:
        metrics["alp/fp8_surviving_fraction"] = sum(u.fp8_changed for u in updates) / total
    if learner.policy_config.emulated_fp8 is None:
        return metrics
    linears = [m for c in learner.chunks for m in c.modules() if isinstance(m, EmulatedFp8)]
    peaks = torch.stack([linear.fp8_meter.take() for linear in linears]).amax(0)
    dist.all_reduce(peaks, op=dist.ReduceOp.MAX)
    kinds = ["amax"]
    if learner.config.model.fp8.recipe == "delayed":
        kinds.append("amax_growth")
    for kind, values in zip(kinds, peaks.tolist(), strict=False):
        pairs = zip(OPERANDS, values, strict=True)
        metrics |= {f"fp8/{kind}_{operand}": value for operand, value in pairs}
    return metrics


def step_record(
    trajectories: list[Trajectory],
    clean: dict | None,
    updates: list[UpdateRecord],
    sigmas: list[float],
    version: int,
    seconds: dict[str, float],
) -> dict[str, float]:
    """The metrics of design.md for one step.

    Args:
        trajectories: the step's samples.
        clean: unperturbed log-probabilities by sample id, at the weights that sampled; None
            leaves out `mismatch/`.
        updates: in order.
        sigmas: by layer, after the updates; zeros where the method has no noise.
        version: of the trainer's weights when the updates began.
        seconds: by phase.
    """
    rewards = np.array([t.reward for t in trajectories])
    lags = np.array([version - t.policy_version for t in trajectories])
    computed = sum(u.computed_tokens for u in updates)
    response = sum(len(t.response_ids) for t in trajectories)
    return {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()),
        **update_metrics(trajectories, updates),
        **({} if clean is None else _clean_mismatch(clean, trajectories)),
        **sigma_metrics(sigmas),
        "tokens/prompt": sum(len(t.prompt_ids) for t in trajectories),
        "tokens/response": response,
        "tokens/padding_share": _share(sum(u.padding_tokens for u in updates), computed),
        "throughput/rollout_tokens_per_s": response / seconds["rollout"],
        "throughput/train_tokens_per_s": sum(t.num_tokens for t in trajectories) / seconds["train"],
        "policy_version/lag_mean": float(lags.mean()),
        "policy_version/lag_max": int(lags.max()),
        **{f"time/{phase}": value for phase, value in seconds.items()},
    }


def update_metrics(trajectories: list[Trajectory], updates: list[UpdateRecord]) -> dict[str, float]:
    """The metrics of updates on all of these samples, over those updates that were made.

    A skipped one may hold numbers that are not finite. With `envelope_keys` where every update
    has its `clean` arrays.
    """
    flat = _flat(trajectories)
    pooled = _pool(updates, [u.tokens for u in updates])
    mask = flat["mask"] * pooled["made"]
    metrics = {
        "loss/policy": _mean([u.loss for u in updates if not u.skipped]),
        "grad_norm": _mean([u.grad_norm for u in updates if not u.skipped]),
        "entropy": _mean(pooled["entropies"][mask > 0]),
        **_numerator_metrics(pooled, mask, flat, "ratio", "mismatch_perturbed"),
        **correction_metrics(pooled, mask),
        "alp/effective_fraction": _share(
            sum(u.noise_changed for u in updates), sum(u.noise_total for u in updates)
        ),
        "updates/skipped": sum(u.skipped for u in updates),
    }
    clean = [u.clean for u in updates if u.clean is not None]
    if len(clean) == len(updates):
        pooled = _pool(updates, clean)
        metrics |= _numerator_metrics(pooled, mask, flat, "ratio_clean", "mismatch_clean")
    return metrics


def sigma_metrics(sigmas: list[float]) -> dict[str, float]:
    """Of the noise scales by layer."""
    return {
        "alp/sigma_mean": float(np.mean(sigmas)),
        "alp/sigma_min": min(sigmas),
        "alp/sigma_max": max(sigmas),
        **{f"alp/sigma_layer_{i}": sigma for i, sigma in enumerate(sigmas)},
    }


def _numerator_metrics(pooled: dict, mask: np.ndarray, flat: dict, ratio: str, mismatch: str):
    flags = [pooled[name] for name in ("clip_low", "clip_high", "dual_clip")]
    return {
        **ratio_metrics(pooled["log_ratio"], mask, *flags, ratio),
        **mismatch_metrics(pooled["logprobs"], flat["rollout"], mask, flat["index"], mismatch),
    }


def _flat(trajectories: list[Trajectory]) -> dict[str, np.ndarray]:
    """Arrays over the response tokens, ordered by sample id, which is their `index`."""
    by_id = sorted(trajectories, key=lambda t: t.sample_id)
    return {
        "rollout": _concat([t.rollout_logprobs for t in by_id]),
        "mask": _concat([t.loss_mask for t in by_id]),
        "index": np.repeat([t.sample_id for t in by_id], [len(t.response_ids) for t in by_id]),
    }


def _clean_mismatch(clean: dict, trajectories: list[Trajectory]) -> dict[str, float]:
    flat = _flat(trajectories)
    logprobs = _concat([clean[i] for i in sorted(t.sample_id for t in trajectories)])
    return mismatch_metrics(logprobs, flat["rollout"], flat["mask"], flat["index"], "mismatch")


def _pool(updates: list[UpdateRecord], tokens: list[dict]) -> dict[str, np.ndarray]:
    """The updates' tokens ordered by sample id, and which of them are of an update `made`."""
    pooled = {name: np.concatenate([of[name] for of in tokens]) for name in tokens[0]}
    pooled["made"] = np.concatenate(
        [np.full(len(u.tokens["sample_id"]), not u.skipped) for u in updates]
    )
    order = np.argsort(pooled["sample_id"], kind="stable")
    return {name: values[order] for name, values in pooled.items()}


def _concat(rows: list) -> np.ndarray:
    return np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _mean(values) -> float:
    """0 where there is none: every update of the step was skipped."""
    return float(np.mean(values)) if len(values) else 0.0
