"""Mismatch and ratio metrics, the tokens they are made of, the key list and the health notes."""

import math

import numpy as np
import pytest
import torch

from alp_megatron.errors import UserError
from alp_megatron.metrics.health import CHECKS, Watch, warnings
from alp_megatron.metrics.keys import MISMATCH, required_keys
from alp_megatron.metrics.tokens import TokenRatios, mismatch_metrics, ratio_metrics


def short(metrics):
    return {key.split("/")[1]: value for key, value in metrics.items()}


def test_mismatch_by_hand():
    # l = 0.1, -0.2 in sequence 0 (its third token masked), 0.3 in sequence 5.
    rollout = torch.tensor([-1.0, -0.5, -7.0, -2.0], dtype=torch.float64)
    train = torch.tensor([-0.9, -0.7, math.nan, -1.7], dtype=torch.float64)
    got = short(mismatch_metrics(train, rollout, [1, 1, 0, 1], [0, 0, 0, 5]))
    ls = [0.1, -0.2, 0.3]
    e = [math.exp(x) for x in ls]
    want = {
        "k1": -0.2 / 3,
        "k3": sum(w - x - 1 for w, x in zip(e, ls, strict=True)) / 3,
        "chi2_token": sum(w * w for w in e) / 3 - 1,
        "chi2_seq": (math.exp(-0.2) + math.exp(0.6)) / 2 - 1,
        "abs_diff_mean": 0.2,
        "abs_diff_max": 0.3,
        "prob_pearson": np.corrcoef(np.exp([-0.9, -0.7, -1.7]), np.exp([-1, -0.5, -2]))[0, 1],
        "token_mult_prob_error": (math.exp(0.1) + math.exp(0.2) + math.exp(0.3)) / 3,
        "ess": sum(e) ** 2 / (3 * sum(w * w for w in e)),
    }
    assert got == pytest.approx(want, abs=1e-12)


EQUAL = dict.fromkeys(MISMATCH, 0.0) | {"prob_pearson": 1, "token_mult_prob_error": 1, "ess": 1}


def test_equal_policies_and_an_empty_batch():
    logprobs = -np.random.default_rng(0).random(50)
    assert short(mismatch_metrics(logprobs, logprobs, np.ones(50), np.arange(50) // 7)) == EQUAL
    assert short(mismatch_metrics([-1.0], [-2.0], [0], [0])) == EQUAL
    assert short(mismatch_metrics([], [], [], [])) == EQUAL


def test_pearson_where_a_policy_does_not_vary():
    args = [[1, 1], [0, 0]]
    assert short(mismatch_metrics([-1, -1], [-1, -1], *args))["prob_pearson"] == 1
    assert short(mismatch_metrics([-1, -1], [-1, -2], *args))["prob_pearson"] == 0


@pytest.mark.parametrize("scale", [1e-16, 1e-9, 1e-3, 1.0, 1e3])
def test_bounds_hold_and_everything_is_finite(scale):
    rng = np.random.default_rng(1)
    rollout = -rng.exponential(scale, 4000)
    train = np.minimum(rollout + scale * rng.standard_normal(4000), 0)
    got = short(mismatch_metrics(train, rollout, np.ones(4000), np.arange(4000) // 40))
    assert all(map(math.isfinite, got.values()))
    assert got["k3"] >= 0 and 0 < got["ess"] <= 1 and -1 <= got["prob_pearson"] <= 1
    assert got["token_mult_prob_error"] >= 1 and got["abs_diff_max"] >= got["abs_diff_mean"]


def test_k1_and_k3_estimate_the_divergence():
    rng = np.random.default_rng(2)
    p, q = rng.dirichlet(np.ones(8)), rng.dirichlet(np.ones(8) * 3)
    p, q = 0.8 * q + 0.2 * p, q  # rollout p, train q
    tokens = rng.choice(8, size=400_000, p=p)
    got = short(mismatch_metrics(np.log(q[tokens]), np.log(p[tokens]), tokens < 8, tokens))
    divergence = float((p * np.log(p / q)).sum())
    assert got["k1"] == pytest.approx(divergence, rel=0.1)
    assert got["k3"] == pytest.approx(divergence, rel=0.05)


def test_ratio_metrics_against_torch():
    log_ratio = torch.randn(1001, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(1001) % 5 > 0
    low, high, dual = log_ratio < -1, log_ratio > 1, log_ratio > 2
    got = ratio_metrics(log_ratio, mask, low, high, dual)
    ratio = log_ratio[mask].exp()
    want = {
        "ratio/mean": ratio.mean(),
        "ratio/std": ratio.std(correction=0),
        "ratio/min": ratio.min(),
        "ratio/max": ratio.max(),
        "ratio/clip_low": low[mask].double().mean(),
        "ratio/clip_high": high[mask].double().mean(),
        "ratio/dual_clip": dual[mask].double().mean(),
    }
    for percent in (1, 2, 50, 98, 99):
        want[f"ratio/p{percent:02d}"] = ratio.quantile(percent / 100)
    assert got == pytest.approx({key: float(value) for key, value in want.items()}, abs=1e-12)


def test_ratio_metrics_of_nothing():
    got = ratio_metrics([], [], [], [], [])
    assert got["ratio/mean"] == got["ratio/p99"] == 1 and got["ratio/clip_high"] == 0


def test_the_metrics_make_the_required_keys():
    keys = required_keys(3)
    assert len(keys) == len(set(keys))
    made = ratio_metrics([0.0], [1], [0], [0], [0])
    made |= mismatch_metrics([0], [0], [1], [0], prefix="mismatch_before")
    made |= mismatch_metrics([0], [0], [1], [0], prefix="mismatch_during_perturbed")
    families = ("ratio/", "mismatch_before/", "mismatch_during_perturbed/")
    assert set(made) == {key for key in keys if key.startswith(families)}
    assert [key for key in keys if key.startswith("alp/sigma_layer_")] == [
        f"alp/sigma_layer_{i}" for i in range(3)
    ]


FIRST = {
    "step": 0,
    "mismatch_before/k3": 0.01,
    "mismatch_during_perturbed/k3": 0.02,
    "mismatch_before/ess": 0.9,
    "alp/effective_fraction": 0.99,
    "alp/fp8_surviving_fraction": 0.2,
    "alp/sigma_max": 0.01,
    "ratio/p02": 0.9,
    "ratio/p98": 1.1,
    "ratio/clip_low": 0.1,
    "ratio/clip_high": 0.1,
    "ratio/dual_clip": 0.0,
    "correction/rejected_tokens": 0.01,
    "grad_norm": 0.5,
    "updates/skipped": 0,
    "entropy": 2.0,
    "reward/std": 0.4,
    "policy_version/lag_max": 0,
}
HEALTHY = FIRST | {"step": 2}
# A change of a healthy record, and the check that finds it: just inside and just outside.
CHANGES = [
    ({}, None),
    ({"mismatch_before/k3": 0.1}, None),
    ({"mismatch_before/k3": 0.11}, "mismatch_before/k3"),
    ({"mismatch_during_perturbed/k3": 0.11}, "mismatch_during_perturbed/k3"),
    ({"mismatch_before/ess": 0.49}, "mismatch_before/ess"),
    ({"alp/effective_fraction": 0.0003}, "alp/effective_fraction"),
    ({"alp/effective_fraction": 0.0, "alp/sigma_max": 0.0}, None),
    ({"alp/fp8_surviving_fraction": 0.009}, "alp/fp8_surviving_fraction"),
    ({"ratio/p98": 2.0, "ratio/p02": 0.5}, None),
    ({"ratio/p98": 2.1}, "ratio/p98"),
    ({"ratio/p02": 0.49}, "ratio/p02"),
    ({"ratio/dual_clip": 0.09}, None),
    ({"ratio/dual_clip": 0.15}, "clipped share"),
    ({"correction/rejected_tokens": 0.31}, "correction/rejected_tokens"),
    ({"alp/sigma_max": 0.099}, None),
    ({"alp/sigma_max": 0.101}, "growth of alp/sigma_max"),
    ({"grad_norm": 4.9}, None),
    ({"grad_norm": 5.1}, "growth of grad_norm"),
    ({"updates/skipped": 1}, "updates/skipped"),
    ({"entropy": 0.21}, None),
    ({"entropy": 0.19}, "share of the first entropy"),
    ({"reward/std": 0.0}, "reward/std"),
    ({"policy_version/lag_max": 5}, "policy_version/lag_max"),
]


@pytest.mark.parametrize(("change", "name"), CHANGES)
def test_health(change, name):
    found = warnings(HEALTHY | change, FIRST)
    assert list(found) == ([name] if name else [])
    assert all(text.startswith("Step 3: ") and "; try " in text for text in found.values())


def test_every_check_has_been_tried():
    assert {name for _, name in CHANGES if name} == {check.name for check in CHECKS}


def test_each_kind_is_told_once_and_missing_keys_are_passed_over():
    assert warnings({"step": 1}, {"step": 0}) == {}
    watch = Watch()
    assert watch.new_warnings(FIRST) == []
    assert len(watch.new_warnings(HEALTHY | {"mismatch_before/k3": 1.0})) == 1
    two_ills = HEALTHY | {"mismatch_before/k3": 2.0, "mismatch_before/ess": 0.1}
    assert len(watch.new_warnings(two_ills)) == 1
    assert watch.new_warnings(two_ills) == []


def test_growth_is_against_the_run_s_first_step_also_after_a_resume():
    grown = HEALTHY | {"grad_norm": 40.0}
    assert Watch().new_warnings(grown) == []  # its own first step
    (text,) = Watch(first=FIRST).new_warnings(grown)
    assert text.startswith("Step 3: growth of grad_norm is 80, healthy is at most 10 times")
    assert warnings(grown, FIRST | {"grad_norm": 0.0}) == {}  # nothing to compare with


def test_what_is_saved_is_loaded(tmp_path):
    ids = np.array([0, 0, 1])
    values = np.array([-0.5, -1.25, -3.0], np.float32)
    TokenRatios(ids, ids.astype(np.int32), values, values + 1, values + 2).save(tmp_path / "a.npz")
    loaded = TokenRatios.load(tmp_path / "a.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    np.testing.assert_array_equal(loaded.sample_id, ids)
    np.testing.assert_array_equal(loaded.perturbed_logprobs, values + 2)
    assert loaded.rollout_logprobs.dtype == np.float32


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(UserError, match=r"a\.npz is damaged"):
        TokenRatios.load(tmp_path / "a.npz")
