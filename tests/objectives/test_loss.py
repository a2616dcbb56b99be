"""The clipped loss, its normalisation and the methods."""

import math
from dataclasses import replace

import pytest
import torch

from alp_megatron.config.methods import with_method_defaults
from alp_megatron.config.schema import ObjectiveConfig
from alp_megatron.objectives.loss import LossInputs, clipped_policy_loss, policy_objective

CLIP = {"eps_low": 0.5, "eps_high": 3.0, "dual_clip": 3.0}  # r in [0.5, 4], c = 3

# (ratio, advantage) -> loss, which flag, d loss / d log r
CASES = [
    (2.0, 1.5, -3.0, None, -3.0),  # inside
    (5.0, 1.5, -6.0, "clip_high", 0.0),  # -1.5 * 4
    (0.2, 1.5, -0.3, None, -0.3),  # below, but the pessimistic side is the unclipped one
    (2.0, -1.5, 3.0, None, 3.0),  # inside
    (0.2, -1.5, 0.75, "clip_low", 0.0),  # 1.5 * 0.5
    (3.5, -1.5, 4.5, "dual_clip", 0.0),  # 1.5 * 3, before the upper bound is reached
    (9.0, -1.5, 4.5, "dual_clip", 0.0),
    (9.0, 0.0, 0.0, None, 0.0),
]


@pytest.mark.parametrize(("r", "advantage", "loss", "flag", "gradient"), CASES)
def test_clipping_by_hand(r, advantage, loss, flag, gradient):
    log_r = torch.tensor([math.log(r)], dtype=torch.float64, requires_grad=True)
    got = clipped_policy_loss(log_r, torch.tensor([advantage], dtype=torch.float64), **CLIP)
    got.per_token.sum().backward()
    assert got.per_token.item() == pytest.approx(loss, abs=1e-6)
    assert log_r.grad.item() == pytest.approx(gradient, abs=1e-12)
    flags = {name: getattr(got, name).item() for name in ("clip_low", "clip_high", "dual_clip")}
    assert flags == {name: name == flag for name in flags}


def test_without_dual_clip_a_large_ratio_keeps_its_gradient():
    log_r = torch.tensor([math.log(9.0)], requires_grad=True)
    got = clipped_policy_loss(log_r, torch.tensor([-1.0]), **{**CLIP, "dual_clip": None})
    got.per_token.sum().backward()
    assert not got.dual_clip.any() and log_r.grad.item() == pytest.approx(9.0)


def make_batch(lengths, seed=0, spread=1.0) -> LossInputs:
    """fp64 sequences of these lengths; about a fifth of the tokens masked."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)

    def uniform():
        return torch.rand(tokens, generator=generator, dtype=torch.float64)

    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    rollout = -3 * uniform()
    mask = (uniform() > 0.2).double()
    return LossInputs(
        logprobs=(rollout + spread * (2 * uniform() - 1)).requires_grad_(),
        rollout_logprobs=rollout,
        old_logprobs=rollout + 0.1 * uniform(),
        advantages=(2 * uniform() - 1)[index],
        mask=mask,
        sequence_index=index,
        num_sequences=len(lengths),
        num_tokens_global=int(mask.sum()),
        num_sequences_global=len(lengths),
    )


@pytest.mark.parametrize("normalization", ["token", "sequence"])
@pytest.mark.parametrize("method", ["alp", "bypass", "grpo"])
def test_gradient_against_finite_differences(method, normalization):
    batch = make_batch([5, 1, 7], spread=2.0)
    config = ObjectiveConfig(method=method, loss_normalization=normalization)

    def loss(logprobs):
        return policy_objective(config, replace(batch, logprobs=logprobs)).loss

    assert torch.autograd.gradcheck(loss, batch.logprobs, eps=1e-7, atol=1e-6)
    gradient = torch.autograd.grad(loss(batch.logprobs), batch.logprobs)[0]
    out = policy_objective(config, batch)
    dead = out.clip_low | out.clip_high | out.dual_clip
    assert dead.any() and gradient[dead].eq(0).all()
    assert torch.equal(gradient != 0, ~dead & (batch.mask > 0))


@pytest.mark.parametrize("length_normalized", [False, True])
def test_sequence_level_gradient_in_closed_form(length_normalized):
    # d loss / d logp_t = -A r_seq m_t / N where the sequence is not clipped, else 0.
    batch = make_batch([5, 1, 7, 4], spread=1.5)
    config = ObjectiveConfig(level="sequence", length_normalized=length_normalized)
    out = policy_objective(config, batch)
    alive = ~(out.clip_low | out.clip_high | out.dual_clip)
    want = -batch.advantages * out.log_ratio.exp() * batch.mask * alive / batch.num_tokens_global
    torch.testing.assert_close(torch.autograd.grad(out.loss, batch.logprobs)[0], want)


def select(batch: LossInputs, sequences: list[int]) -> LossInputs:
    """Those sequences as a micro-batch of their own; the global counts stay."""
    tokens = torch.cat([torch.where(batch.sequence_index == s)[0] for s in sequences])
    flat = ("logprobs", "rollout_logprobs", "old_logprobs", "advantages", "mask")
    lengths = torch.tensor([int((batch.sequence_index == s).sum()) for s in sequences])
    return replace(
        batch,
        **{name: getattr(batch, name)[tokens] for name in flat},
        sequence_index=torch.repeat_interleave(torch.arange(len(sequences)), lengths),
        num_sequences=len(sequences),
    )


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("normalization", ["token", "sequence"])
def test_loss_does_not_depend_on_the_split(level, normalization):
    batch = make_batch([4, 9, 1, 6, 2, 8], spread=0.3)
    config = ObjectiveConfig(level=level, loss_normalization=normalization)

    def total(split):
        loss = sum(policy_objective(config, select(batch, part)).loss for part in split)
        return loss, torch.autograd.grad(loss, batch.logprobs)[0]

    whole, gradient = total([[0, 1, 2, 3, 4, 5]])
    for split in ([[5, 0], [3, 1, 2, 4]], [[0], [1], [2], [3], [4], [5]]):
        loss, grad = total(split)
        torch.testing.assert_close(loss, whole, atol=1e-14, rtol=0)
        torch.testing.assert_close(grad, gradient, atol=1e-14, rtol=0)


def test_normalisation_by_hand():
    # r = 1 everywhere, so each token's loss is -A: -1 for sequence 0, +2 for sequence 1.
    zeros = torch.zeros(5)
    batch = LossInputs(
        logprobs=zeros,
        rollout_logprobs=zeros,
        old_logprobs=None,
        advantages=torch.tensor([1.0, 1.0, 1.0, -2.0, -2.0]),
        mask=torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]),
        sequence_index=torch.tensor([0, 0, 0, 1, 1]),
        num_sequences=2,
        num_tokens_global=8,
        num_sequences_global=4,
    )
    token = policy_objective(ObjectiveConfig(loss_normalization="token"), batch).loss
    sequence = policy_objective(ObjectiveConfig(loss_normalization="sequence"), batch).loss
    assert token.item() == pytest.approx((-3 + 2) / 8)
    assert sequence.item() == pytest.approx((-1 + 2) / 4)


@pytest.mark.parametrize("normalization", ["token", "sequence"])
def test_fully_masked_micro_batch_adds_nothing(normalization):
    batch = make_batch([3, 2])
    batch = replace(batch, mask=torch.zeros(5, dtype=torch.float64), num_tokens_global=0)
    out = policy_objective(ObjectiveConfig(loss_normalization=normalization), batch)
    gradient = torch.autograd.grad(out.loss, batch.logprobs)[0]
    assert out.loss.item() == 0 and gradient.eq(0).all()
    assert not (out.clip_low | out.clip_high | out.dual_clip).any()


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_alp_on_unperturbed_logprobs_is_bypass_bitwise(level):
    batch = make_batch([6, 3], spread=2.0)
    results = []
    for method in ("alp", "bypass"):
        out = policy_objective(ObjectiveConfig(method=method, level=level), batch)
        results.append((out.loss, torch.autograd.grad(out.loss, batch.logprobs)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_grpo_compares_with_the_old_policy():
    batch = make_batch([6, 3])
    out = policy_objective(ObjectiveConfig(method="grpo"), batch)
    want = (batch.logprobs - batch.old_logprobs) * batch.mask
    torch.testing.assert_close(out.log_ratio, want.detach())
    with pytest.raises(AssertionError, match="old_logprobs"):
        policy_objective(ObjectiveConfig(method="grpo"), replace(batch, old_logprobs=None))


def test_method_defaults_yield_to_what_the_user_gave():
    config = with_method_defaults(ObjectiveConfig(method="grpo", eps_high=0.4))
    assert (config.eps_low, config.eps_high, config.dual_clip) == (0.2, 0.4, 10.0)
    assert with_method_defaults(ObjectiveConfig()) == ObjectiveConfig()
