"""The GPU proof where there is no GPU, and how it reports its parts."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks.gpu import __main__ as proof
from benchmarks.gpu.fp8 import emulated_products
from benchmarks.gpu.part import Found, Goal, Skip, need
from tests.fp8.test_layers import RECIPES, reference_products
from tests.support.layouts import config_for
from tests.support.models import make_model
from tests.support.runs import REPO


def test_without_a_gpu_it_is_one_sentence():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=REPO,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    expected = "error: the GPU proof needs a CUDA device, but torch sees none.\n"
    assert done.stderr == expected


def test_every_outcome_is_told():
    def skips() -> Found:
        need("json", "no_such_package")
        raise AssertionError

    def fails() -> Found:
        raise ValueError("a reason")

    def misses() -> Found:
        return Found({"ms": 3.0}, [Goal("speed", 0.7, at_least=0.8), Goal("error", 0.1, at_most=1)])

    outcomes = [proof._outcome(part) for part in (skips, fails, misses)]
    assert [o["status"] for o in outcomes] == ["skipped", "failed", "ran"]
    assert proof._line("a", outcomes[0]) == "a: skipped: no_such_package is not installed"
    assert proof._line("b", outcomes[1]) == "b: failed: ValueError: a reason"
    line = proof._line("c", outcomes[2])
    assert line.startswith("c: speed 0.7 >= 0.8 MISSED; error 0.1 <= 1 met (")
    assert not proof._all_met(outcomes[2])


def test_a_layer_reads_the_key_of_its_plan(workers, tmp_path):
    """What a captured graph relies on: a replay sees the key words as they are by then."""
    config = config_for(make_model(tmp_path))
    first, other, again = workers.run("tests.support.jobs:layer_under_keys", config, 1)[0]
    for before, expected, found in zip(first, other, again, strict=True):
        assert torch.equal(found, expected) and not torch.equal(found, before)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_proof_s_emulation_equals_float64(recipe):
    rng = np.random.default_rng(9)
    operands = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in {"x": (256, 384), "w": (128, 384), "g": (256, 128)}.items()
    }
    ours = emulated_products(recipe, **{n: torch.from_numpy(a) for n, a in operands.items()})
    expected = reference_products(recipe, **operands)
    for name, matrix in zip(("y", "dx", "dw"), expected, strict=True):
        np.testing.assert_allclose(ours[name], matrix, rtol=0, atol=2e-6 * np.abs(matrix).max())


@pytest.mark.parametrize("value, met", [(1.0, True), (1.1, False), (float("nan"), False)])
def test_goals(value, met):
    assert Goal("x", value, at_most=1.0).met is met
    assert issubclass(Skip, Exception)


def test_flops_by_hand():
    """A model whose weights are counted on paper: 2 layers, 4 heads of 8, 2 key-value heads."""
    from benchmarks.gpu import models

    shape = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
    )
    models.SHAPES["paper"] = shape
    # QKV 32 x 64, projection 32 x 32, MLP 3 x 32 x 64; head 100 x 32
    weights = 2 * (2048 + 1024 + 6144) + 3200
    # q k^T and a v: each 2 operations a channel and earlier token, three times for the backward
    attention = 2 * 2 * 2 * 32 * (models.TOKENS / 2) * 3
    expected = models.SAMPLES * models.TOKENS * (6 * weights + attention)
    try:
        assert models.flops_of_an_update("paper") == expected
    finally:
        del models.SHAPES["paper"]
