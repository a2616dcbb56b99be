"""Advantages and log-ratios, against values worked by hand."""

import math

import pytest
import torch

from alp_megatron.objectives.advantages import group_advantages
from alp_megatron.objectives.ratios import log_ratio

# Two sequences: tokens 0-2 (the second masked) and 3-4.
INDEX = torch.tensor([0, 0, 0, 1, 1])
MASK = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])
TRAIN = torch.tensor([-1.0, -9.0, -0.5, -2.0, -0.25])
ROLLOUT = torch.tensor([-1.2, -3.0, -0.6, -1.5, -0.5])
# d = 0.2, (masked), 0.1 | -0.5, 0.25


def ratio(train=TRAIN, mask=MASK, **options):
    return log_ratio(train, ROLLOUT, mask, INDEX, 2, **options)


def test_advantages_by_hand():
    # Group 7: rewards 0, 1, 1, 0: mean 0.5, sample std sqrt(1/3). Group 3: 1, 3: std sqrt(2).
    got = group_advantages(
        torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 3.0]), torch.tensor([7, 7, 3, 7, 7, 3])
    )
    a, b = 0.5 / (math.sqrt(1 / 3) + 1e-6), 1 / (math.sqrt(2) + 1e-6)
    torch.testing.assert_close(got, torch.tensor([-a, a, -b, a, -a, b]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e6 + 0.3])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_equal_rewards_give_exactly_zero(value, size):
    rewards = torch.full((size,), value, dtype=torch.float64)
    assert group_advantages(rewards, torch.zeros(size, dtype=torch.int64)).eq(0).all()


def test_advantages_of_nothing():
    assert group_advantages(torch.empty(0), torch.empty(0, dtype=torch.int64)).shape == (0,)


def test_token_ratio():
    torch.testing.assert_close(
        ratio(level="token"), torch.tensor([0.2, 0.0, 0.1, -0.5, 0.25]), atol=1e-6, rtol=0
    )


def test_sequence_ratio_is_the_masked_sum():
    want = torch.tensor([0.3, 0.3, 0.3, -0.25, -0.25])
    torch.testing.assert_close(ratio(level="sequence"), want, atol=1e-6, rtol=0)
    got = ratio(level="sequence", length_normalized=True)
    torch.testing.assert_close(got, want / 2, atol=1e-6, rtol=0)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_gradient_is_that_of_each_tokens_own_logprob(level):
    train = TRAIN.clone().requires_grad_()
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (ratio(train, level=level) * weights).sum().backward()
    assert torch.equal(train.grad, weights * MASK)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_empty_mask_and_garbage_under_it(level):
    garbage = torch.tensor([math.nan, -math.inf, math.inf, 0.0, -1.0]).requires_grad_()
    got = ratio(garbage, torch.zeros(5), level=level, length_normalized=level == "sequence")
    got.sum().backward()
    assert got.eq(0).all() and garbage.grad.eq(0).all()


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("sign", [1, -1])
def test_clamp_at_20_kills_the_gradient(level, sign):
    train = torch.tensor([sign * 30.0, sign * 19.0]).requires_grad_()
    index = torch.tensor([0, 1])
    got = log_ratio(train, torch.zeros(2), torch.ones(2), index, 2, level=level)
    got.sum().backward()
    assert got.tolist() == [sign * 20.0, sign * 19.0]
    assert train.grad.tolist() == [0.0, 1.0]
