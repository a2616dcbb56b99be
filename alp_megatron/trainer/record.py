"""Makes one step's record: every metric over the step's whole batch, computed exactly, once."""

import numpy as np

from alp_megatron.config.schema import Config
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.metrics.tokens import (
    TokenRatios,
    correction_metrics,
    mismatch_metrics,
    ratio_metrics,
)
from alp_megatron.trainer.step import StepResult, UpdateRecord, sum_counts


def has_envelope(config: Config, step: int) -> bool:
    """Returns whether a step, counted from 0, writes envelopes/ and has `envelope_keys`."""
    interval, done = config.logging.envelope_interval, step + 1
    return interval > 0 and (done % interval == 0 or done == config.trainer.steps)


def has_mismatch(config: Config, step: int) -> bool:
    """Returns whether a step, counted from 0, has `mismatch_before/*` with every method."""
    interval = config.logging.clean_mismatch_interval
    return interval > 0 and step % interval == 0


def token_ratios(trajectories: list[Trajectory], updates: list[UpdateRecord]) -> TokenRatios:
    """Returns the sampled tokens of the updates that were made, update after update, by sample id.

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
    """Returns the fields of TokenRatios, in their order."""
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


def step_record(
    trajectories: list[Trajectory],
    result: StepResult,
    version: int,
    seconds: dict[str, float],
) -> dict[str, float]:
    """Returns the metrics of one step, `metrics.keys.required_keys`.

    Args:
        trajectories: the step's samples.
        result: without `logprobs_before` there is no `mismatch_before/`.
        version: of the trainer's weights when the updates began.
        seconds: by phase.
    """
    assert all(t.reward is not None for t in trajectories), "a trajectory is not scored"
    rewards = np.array([t.reward for t in trajectories])
    lags = np.array([version - t.policy_version for t in trajectories])
    counts, before = result.counts, result.logprobs_before
    response = sum(len(t.response_ids) for t in trajectories)
    return {
        "reward/mean": float(rewards.mean()),
        "reward/std": float(rewards.std()),
        **update_metrics(trajectories, result.updates),
        **({} if before is None else _mismatch_before(before, trajectories)),
        **sigma_metrics(result.sigmas[-1]),
        "tokens/prompt": sum(len(t.prompt_ids) for t in trajectories),
        "tokens/response": response,
        "tokens/padding_share": _share(counts["padding"], counts["tokens"]),
        "throughput/rollout_tokens_per_s": response / seconds["rollout"],
        "throughput/train_tokens_per_s": sum(t.num_tokens for t in trajectories) / seconds["train"],
        "policy_version/lag_mean": float(lags.mean()),
        "policy_version/lag_max": int(lags.max()),
        **{f"time/{phase}": value for phase, value in seconds.items()},
        **result.fp8_metrics,
    }


def update_metrics(trajectories: list[Trajectory], updates: list[UpdateRecord]) -> dict[str, float]:
    """Returns the metrics of updates on all of these samples, over those updates that were made.

    A skipped one may hold numbers that are not finite. With `envelope_keys` where every update
    has its `clean` arrays.
    """
    flat = _flat(trajectories)
    pooled = _pool(updates, [u.tokens for u in updates])
    mask, counts = flat["mask"] * pooled["made"], sum_counts(updates)
    metrics = {
        "loss/policy": _mean([u.loss for u in updates if not u.skipped]),
        "grad_norm": _mean([u.grad_norm for u in updates if not u.skipped]),
        "entropy": _mean(pooled["entropies"][mask > 0]),
        **_numerator_metrics(pooled, mask, flat, "ratio", "mismatch_during_perturbed"),
        **correction_metrics(pooled, mask),
        "alp/effective_fraction": _share(counts["noise_changed"], counts["noise_total"]),
        "updates/skipped": sum(u.skipped for u in updates),
    }
    clean = [u.clean for u in updates if u.clean is not None]
    if len(clean) == len(updates):
        pooled = _pool(updates, clean)
        metrics |= _numerator_metrics(pooled, mask, flat, "ratio_clean", "mismatch_during_clean")
    return metrics


def sigma_metrics(sigmas: list[float]) -> dict[str, float]:
    """Returns `alp/sigma_*` of the noise scales by layer."""
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
    """Returns arrays over the response tokens, ordered by sample id, which is their `index`."""
    by_id = sorted(trajectories, key=lambda t: t.sample_id)
    return {
        "rollout": _concat([t.rollout_logprobs for t in by_id]),
        "mask": _concat([t.loss_mask for t in by_id]),
        "index": np.repeat([t.sample_id for t in by_id], [len(t.response_ids) for t in by_id]),
    }


def _mismatch_before(before: dict, trajectories: list[Trajectory]) -> dict[str, float]:
    flat = _flat(trajectories)
    logprobs = _concat([before[i] for i in sorted(t.sample_id for t in trajectories)])
    against = flat["rollout"], flat["mask"], flat["index"]
    return mismatch_metrics(logprobs, *against, "mismatch_before")


def _pool(updates: list[UpdateRecord], tokens: list[dict]) -> dict[str, np.ndarray]:
    """Returns the updates' tokens by sample id, and which of them are of an update `made`."""
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
    """Returns 0 where there is none: every update of the step was skipped."""
    return float(np.mean(values)) if len(values) else 0.0
