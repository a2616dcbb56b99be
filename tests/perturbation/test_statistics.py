"""The noise is standard normal and independent across everything that names it.

The keys are fixed, so each test either always passes or always fails; bounds are five
standard errors, or p > 1e-4.
"""

import numpy as np
import pytest
import torch
from scipy import special, stats

from alp_megatron.perturbation import NoiseKey, gaussian
from tests.support.marks import slow

KEY = NoiseKey(seed=20240607, step=3, update=1)
HIDDEN = 1024


@pytest.fixture(scope="module", params=[980, slow(9800)])
def rows(request):
    """As many that there are 10^6 normals, or 10^7."""
    return request.param


def _noise(rows, key=KEY, layer=4, sample=100, position=0, hidden=HIDDEN):
    """Rows of 98 samples of `rows // 98` consecutive positions, as in a packed batch."""
    index = torch.arange(rows)
    length = rows // 98
    return gaussian(key, layer, sample + index // length, position + index % length, hidden)


@pytest.fixture(scope="module")
def z(rows):
    return _noise(rows)


def test_moments(z):
    values = z.double()
    mean, var = values.mean().item(), values.var().item()
    square = values.square()
    skew, kurtosis = (square * values).mean().item(), square.square().mean().item()
    # Raw moments of N(0, 1) have variances 1, 2, 15 and 96.
    for value, expected, variance in [
        (mean, 0, 1),
        (var, 1, 2),
        (skew, 0, 15),
        (kurtosis, 3, 96),
    ]:
        assert abs(value - expected) < 5 * (variance / z.numel()) ** 0.5


def test_distribution(z):
    uniform = special.ndtr(z.double().numpy().ravel())
    counts = np.histogram(uniform, bins=4096, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > 1e-4
    assert stats.kstest(uniform[:2_000_000], "uniform").pvalue > 1e-4
    # Each of a block's four lanes by itself.
    for lane in range(4):
        counts = np.histogram(uniform[lane::4], bins=1024, range=(0, 1))[0]
        assert stats.chisquare(counts).pvalue > 1e-4


def test_tails(rows, z):
    draws = [z] + [_noise(rows, key=NoiseKey(5, 0, update)) for update in range(3)]
    for threshold in (3.0, 4.0, 5.0):
        for sign in (1, -1):
            beyond = sum(int((sign * draw > threshold).sum()) for draw in draws)
            expected = special.ndtr(-threshold)
            assert stats.binomtest(beyond, len(draws) * z.numel(), expected).pvalue > 1e-4


def _assert_uncorrelated(a, b):
    """Neither the values nor their squares, which would show a shared Box-Muller radius."""
    a, b = a.double(), b.double()
    bound = 5 / a.numel() ** 0.5
    assert abs((a * b).mean().item()) < bound
    assert abs(((a.square() - 1) * (b.square() - 1)).mean().item() / 2) < bound


@pytest.mark.parametrize(
    "other",
    [
        {"layer": 5},
        {"sample": 101},
        {"sample": 100 + 2**32},
        {"position": 1},
        {"key": NoiseKey(KEY.seed, KEY.step, KEY.update + 1)},
        {"key": NoiseKey(KEY.seed, KEY.step + 1, KEY.update)},
        {"key": NoiseKey(KEY.seed, KEY.update, KEY.step)},
        {"key": NoiseKey(KEY.seed + 1, KEY.step, KEY.update)},
        {"key": NoiseKey(KEY.seed + 2**32, KEY.step, KEY.update)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_names_are_uncorrelated(rows, z, other):
    _assert_uncorrelated(z, _noise(rows, **other))


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 5, 512])
def test_channels_are_uncorrelated(rows, lag):
    z = _noise(rows, hidden=HIDDEN + lag)
    _assert_uncorrelated(z[:, lag:], z[:, :-lag])


def test_lanes_of_a_block_are_uncorrelated(rows):
    blocks = torch.cat([_noise(rows, layer=layer).view(-1, 4) for layer in range(4)])
    for i in range(4):
        for j in range(i):
            _assert_uncorrelated(blocks[:, i], blocks[:, j])
