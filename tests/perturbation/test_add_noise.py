"""`add_noise` and noise on the logits: values, gradients, what is saved and counted."""

import pytest
import torch

from alp_megatron.perturbation import NoiseKey, NoiseRows, add_noise, gaussian
from alp_megatron.perturbation.add_noise import LOGITS_LAYER, LogitsNoise
from alp_megatron.perturbation.philox import MAX_LAYERS

KEY = NoiseKey(seed=11, step=2, update=0)
LAYER, SEQUENCE, BATCH, HIDDEN = 6, 9, 2, 48
ROWS = SEQUENCE * BATCH


def _rows(padding=()):
    sample_ids = torch.arange(ROWS) % BATCH + 40
    sample_ids[list(padding)] = -1
    return NoiseRows(KEY, sample_ids, torch.arange(ROWS) // BATCH)


def _hidden(dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    hidden = 3 * torch.randn(SEQUENCE, BATCH, HIDDEN, generator=rng)
    return hidden.to(dtype).requires_grad_()


def _z(noise):
    z = gaussian(KEY, LAYER, noise.sample_ids, noise.positions, HIDDEN)
    return z.double().view(SEQUENCE, BATCH, HIDDEN)


def _scale(hidden, mode):
    """sigma0-independent factor of each row, in float64: [s, b, 1]."""
    rms = hidden.detach().double().square().mean(-1, keepdim=True).sqrt()
    return rms if mode == "relative" else torch.ones_like(rms)


@pytest.mark.parametrize("mode", ["absolute", "relative"])
def test_gradient_of_scale_equals_finite_differences(mode):
    hidden, noise, log_scale = (
        _hidden(),
        _rows(padding=[4]),
        torch.tensor([0.3], requires_grad=True),
    )
    add_noise(hidden, log_scale, 0.05, noise, LAYER, mode).sin().sum().backward()

    def loss(s):
        sigma = 0.05 * torch.tensor(s, dtype=torch.float64).exp() * _scale(hidden, mode)
        return (hidden.detach().double() + sigma * _z(noise)).sin().sum()

    s = float(torch.tensor(0.3))
    numeric = (loss(s + 1e-5) - loss(s - 1e-5)) / 2e-5
    assert log_scale.grad.dtype == torch.float32
    assert log_scale.grad.item() == pytest.approx(numeric.item(), rel=2e-6)


@pytest.mark.parametrize("mode", ["absolute", "relative"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradients(dtype, mode):
    hidden, noise, log_scale = _hidden(dtype), _rows(), torch.tensor([-0.5], requires_grad=True)
    out = add_noise(hidden, log_scale, 0.1, noise, LAYER, mode)
    sigma = 0.1 * log_scale.detach().double().exp() * _scale(hidden, mode)
    expected = (hidden.detach().double() + sigma * _z(noise)).to(dtype)
    assert out.dtype == dtype and out._base is None
    torch.testing.assert_close(out, expected)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    out.backward(upstream)
    assert torch.equal(hidden.grad, upstream)
    exact = (upstream.double() * sigma * _z(noise)).sum().item()
    assert log_scale.grad.item() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("mode, saved_shape", [("absolute", (1,)), ("relative", (ROWS,))])
def test_saves_only_the_scale_and_may_be_changed_in_place(mode, saved_shape):
    saved = []
    hidden, log_scale = _hidden(), torch.zeros(1, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.shape) or t, lambda t: t
    ):
        out = add_noise(hidden, log_scale, 0.1, _rows(), LAYER, mode)
    assert saved == [saved_shape]
    with torch.no_grad():
        hidden.mul_(3)
        log_scale.add_(1)
    out.mul_(2).sum().backward()
    assert torch.equal(hidden.grad, torch.full_like(hidden, 2))


def test_padding_is_untouched_and_not_counted():
    hidden, noise = _hidden(), _rows(padding=[0, 5, ROWS - 1])
    out = add_noise(hidden, torch.zeros(1), 0.1, noise, LAYER).view(ROWS, HIDDEN)
    before, padding = hidden.view(ROWS, HIDDEN), noise.sample_ids < 0
    assert torch.equal(out[padding], before[padding])
    assert (out[~padding] != before[~padding]).float().mean() > 0.99
    assert noise.counts["noise_total"] == (ROWS - 3) * HIDDEN
    assert noise.counts["noise_changed"] == (out != before).sum()


def test_noise_survives_in_fp32_and_drowns_in_bf16():
    n, h = 1000, 1024
    hidden = torch.randn(n, h, generator=torch.Generator().manual_seed(3))
    fractions = {}
    for dtype, sigma in [(torch.bfloat16, 1e-6), (torch.bfloat16, 1e-2), (torch.float32, 1e-2)]:
        noise = NoiseRows(KEY, torch.arange(n), torch.arange(n))
        add_noise(hidden.to(dtype), torch.zeros(1), sigma, noise, 0)
        counts = noise.counts
        fractions[dtype, sigma] = int(counts["noise_changed"]) / int(counts["noise_total"])
    # Shares found by an emulation of bf16 on N(0, 1): 0.03 % at 1e-6, 83 % at 1e-2.
    assert fractions[torch.bfloat16, 1e-6] == pytest.approx(3e-4, abs=1e-4)
    assert fractions[torch.bfloat16, 1e-2] == pytest.approx(0.83, abs=0.01)
    assert fractions[torch.float32, 1e-2] > 0.9999


def test_gradient_of_scale_adds_up_over_shards():
    """As under sequence parallelism: two ranks with half of the rows each."""
    whole, halves = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    hidden, noise = _hidden().detach(), _rows()
    weight = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(4))
    out = add_noise(hidden, whole, 0.1, noise, LAYER)
    (out * weight).sum().backward()
    for part in (slice(0, 4), slice(4, SEQUENCE)):
        rows = slice(part.start * BATCH, part.stop * BATCH)
        shard = NoiseRows(KEY, noise.sample_ids[rows], noise.positions[rows])
        shard_out = add_noise(hidden[part], halves, 0.1, shard, LAYER)
        assert torch.equal(shard_out, out[part])
        (shard_out * weight[part]).sum().backward()
    assert halves.grad.item() == pytest.approx(whole.grad.item(), rel=1e-6)


IDS, POSITIONS = torch.tensor([5, 5, 9, 2**40]), torch.tensor([0, 1, 1, 700])
NOISE = LogitsNoise(NoiseRows(NoiseKey(7, 3, 1), IDS, POSITIONS).key_words, 0.5, IDS, POSITIONS)


def drawn(first, last, rows=slice(None)):
    logits = torch.zeros(len(IDS[rows]), last - first)
    NOISE.add_to(logits, rows, first)
    return logits


@pytest.mark.parametrize("cuts", [[0, 50, 100], [0, 33, 66, 100], [0, 1, 2, 99, 100]])
def test_shards_draw_the_parts_of_one_noise(cuts):
    whole = drawn(0, 100)
    parts = [drawn(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
    assert torch.equal(torch.cat(parts, 1), whole)
    assert torch.equal(torch.cat([drawn(0, 100, slice(0, 3)), drawn(0, 100, slice(3, 4))]), whole)
    assert 0.4 < whole.std() < 0.6 and len(whole.unique()) == whole.numel()


def test_no_layer_shares_its_address():
    assert LOGITS_LAYER == MAX_LAYERS - 1
