from collections import Counter

import numpy as np
import pytest

from alp_megatron.data.trajectory import Trajectory
from alp_megatron.metrics.keys import envelope_keys, required_keys
from alp_megatron.trainer.record import step_record
from alp_megatron.trainer.step import StepResult, UpdateRecord


def trajectory(sample_id, logprobs, reward):
    n = len(logprobs)
    return Trajectory(
        sample_id, 0, [1, 2], [3] * n, [1] * n, logprobs, policy_version=4, reward=reward
    )


def update(trajectories, logprobs, skipped=False):
    ids = np.concatenate([[t.sample_id] * len(t.response_ids) for t in trajectories])
    values = np.full(len(ids), logprobs)
    flags = {name: np.zeros(len(ids), bool) for name in ("clip_low", "clip_high", "dual_clip")}
    tokens = {"sample_id": ids, "logprobs": values, "entropies": -values, "log_ratio": values + 1.0}
    return UpdateRecord(
        tokens | flags,
        loss=logprobs,
        grad_norm=abs(logprobs),
        skipped=skipped,
        counts=Counter(noise_changed=5, noise_total=10, tokens=20, padding=1),
    )


def record(updates, trajectories, measured=True):
    clean = {t.sample_id: np.array(t.rollout_logprobs) for t in trajectories}
    seconds = {"rollout": 1.0, "reward": 0.1, "train": 2.0, "sync": 0.1, "total": 3.2}
    result = StepResult(
        logprobs_before=clean if measured else None,
        minibatches=[],
        updates=updates,
        sigmas=[[0.0, 0.0]] * (len(updates) - 1) + [[0.1, 0.3]],
        fp8_metrics={},
        seconds={"old_logprobs": 0.0, "clean_logprobs": 0.5, "envelope": 0.0},
    )
    return step_record(trajectories, result, 5, seconds | result.seconds)


FIRST, SECOND = trajectory(0, [-1.0, -1.0], 1.0), trajectory(1, [-1.0, -1.0, -1.0], 0.0)


def test_every_key_and_hand_worked_values():
    # Updates come in their own order; sample 1's tokens have log-prob -0.5, sample 0's -1.
    result = record([update([SECOND], -0.5), update([FIRST], -1.0)], [FIRST, SECOND])
    missing = set(required_keys(2)) - result.keys() - {"step", "eval/score"}
    assert not missing
    assert all(np.isfinite(value) for value in result.values())
    assert result["reward/mean"] == 0.5 and result["loss/policy"] == -0.75
    assert result["mismatch_before/k3"] == 0
    assert result["mismatch_during_perturbed/k1"] == pytest.approx(-0.5 * 3 / 5)
    assert result["ratio/mean"] == pytest.approx((2 + 3 * np.exp(0.5)) / 5)
    assert result["entropy"] == pytest.approx((2 * 1 + 3 * 0.5) / 5)
    assert result["alp/effective_fraction"] == 0.5
    assert result["tokens/padding_share"] == pytest.approx(2 / 40)
    assert result["throughput/rollout_tokens_per_s"] == 5
    assert result["policy_version/lag_max"] == 1


def test_the_clean_numerator_has_its_own_metrics():
    first, second = update([SECOND], -0.5), update([FIRST], -1.0)
    assert not set(envelope_keys()) & record([first, second], [FIRST, SECOND]).keys()
    for made, clean in ((first, -0.75), (second, -1.5)):
        made.clean = made.tokens | {
            "logprobs": np.full_like(made.tokens["logprobs"], clean),
            "log_ratio": np.full_like(made.tokens["logprobs"], clean + 1.0),
        }
    first.clean["clip_high"] = np.array([True, False, False])
    result = record([first, second], [FIRST, SECOND])
    assert set(envelope_keys()) <= result.keys()
    assert result["mismatch_during_clean/k1"] == pytest.approx((2 * 0.5 - 3 * 0.25) / 5)
    assert result["mismatch_during_perturbed/k1"] == pytest.approx(-0.5 * 3 / 5)
    assert result["ratio_clean/mean"] == pytest.approx((2 * np.exp(-0.5) + 3 * np.exp(0.25)) / 5)
    assert result["ratio_clean/clip_high"] == pytest.approx(1 / 5)
    assert result["ratio/clip_high"] == 0


def test_a_skipped_update_leaves_no_number_that_is_not_finite():
    poisoned = update([FIRST], float("nan"), skipped=True)
    result = record([update([SECOND], -0.5), poisoned], [FIRST, SECOND])
    assert all(np.isfinite(value) for value in result.values())
    assert result["updates/skipped"] == 1
    assert result["loss/policy"] == -0.5 and result["entropy"] == pytest.approx(0.5)
    assert result["ratio/max"] == pytest.approx(np.exp(0.5))
    none_made = record([poisoned, update([SECOND], float("inf"), skipped=True)], [FIRST, SECOND])
    assert all(np.isfinite(value) for value in none_made.values())


def test_without_clean_logprobs_only_their_metrics_are_missing():
    updates = [update([SECOND], -0.5), update([FIRST], -1.0)]
    whole, part = (
        record(updates, [FIRST, SECOND], measured=measured) for measured in (True, False)
    )
    assert part == {k: v for k, v in whole.items() if not k.startswith("mismatch_before/")}


def test_what_a_correction_did_is_counted_over_the_whole_batch():
    first, second = update([SECOND], -0.5), update([FIRST], -1.0)
    # Of five tokens one of sample 1 and both of sample 0 are rejected.
    first.tokens |= {"weight": np.array([2.0, 0.0, 0.5]), "kept": np.array([True, False, True])}
    second.tokens |= {"weight": np.zeros(2), "kept": np.zeros(2, bool)}
    result = record([first, second], [FIRST, SECOND])
    assert result["correction/rejected_tokens"] == pytest.approx(3 / 5)
    assert result["correction/rejected_sequences"] == 1 / 2
    assert result["correction/weight_mean"] == pytest.approx(2.5 / 5)
    assert result["correction/weight_max"] == 2
    second.skipped = True  # then sample 1 is the batch
    result = record([first, second], [FIRST, SECOND])
    assert result["correction/rejected_tokens"] == pytest.approx(1 / 3)
    assert result["correction/rejected_sequences"] == 0
    first.skipped = True
    assert record([first, second], [FIRST, SECOND])["correction/weight_mean"] == 1
    assert not [key for key in record([update([FIRST], -1.0)], [FIRST]) if "correction" in key]
