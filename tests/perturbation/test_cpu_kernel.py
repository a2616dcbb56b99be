"""The CPU kernels against the numpy reference, and the invariance of their bits."""

import numpy as np
import pytest
import torch

from alp_megatron.perturbation import NoiseKey, cpu_kernel, gaussian
from alp_megatron.perturbation.philox import box_muller, counters, philox4x32, reference_gaussian

KEY = NoiseKey(seed=2**62 + 12345, step=17, update=3)
WORDS = torch.tensor(KEY.words())


def _rows(n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    samples = torch.randint(0, 2**62, (n,), generator=rng)
    return samples, torch.randint(0, 2**32, (n,), generator=rng)


def test_integers_equal_the_reference():
    words, z = np.empty((4, 1001), np.uint32), np.empty(4004, np.float32)
    for layer, sample, position, first in [
        (0, 0, 0, 0),
        (4095, 2**63 - 1, 2**32 - 1, 2**20 - 1001),
    ]:
        cpu_kernel._normals(WORDS.numpy(), layer, sample, position, first, words, z)
        names = counters(layer, np.array([sample]), np.array([position]), first + np.arange(1001))
        assert np.array_equal(words.T, philox4x32(names, KEY.words())[0])


def test_normals_equal_the_float64_reference():
    samples, positions = _rows(2000)
    ours = gaussian(KEY, 11, samples, positions, 1024)
    exact = reference_gaussian(KEY.words(), 11, samples.numpy(), positions.numpy(), 1024)
    assert np.abs(ours.double().numpy() - exact).max() < 1e-6


def test_edge_words():
    edges = [0, 1, 2, 127, 128, 2**24 - 1, 2**24 + 1, 2**29 - 1, 2**29, 2**30, 2**31 - 1, 2**31]
    edges += [2**32 - 1 - e for e in edges]
    for x in edges:
        for y in edges:
            pair = cpu_kernel._pair(np.uint32(x), np.uint32(y))
            exact = box_muller(np.array([x, y, x, y], dtype=np.uint32))[:2]
            assert np.abs(np.array(pair) - exact).max() < 1e-6
    assert abs(cpu_kernel._radius(np.uint32(0)) - np.sqrt(66 * np.log(2))) < 1e-6


def test_bits_do_not_depend_on_the_arrangement():
    samples, positions = _rows(300)
    whole = gaussian(KEY, 5, samples, positions, 517)
    assert torch.equal(whole, gaussian(KEY, 5, samples, positions, 517))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(whole[order], gaussian(KEY, 5, samples[order], positions[order], 517))
    assert torch.equal(whole[7::13], gaussian(KEY, 5, samples[7::13], positions[7::13], 517))
    assert torch.equal(whole[41:42], gaussian(KEY, 5, samples[41:42], positions[41:42], 517))
    for start, width in [(0, 1), (0, 8), (1, 516), (2, 3), (3, 512), (255, 9), (516, 1)]:
        part = gaussian(KEY, 5, samples, positions, width, channel_start=start)
        assert torch.equal(whole[:, start : start + width], part)


@pytest.mark.parametrize("hidden_size", [1, 7, 64, 517])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_kernels_use_the_same_noise(hidden_size, dtype):
    samples, positions = _rows(64)
    samples[[3, 40]] = -1
    z = gaussian(KEY, 9, samples, positions, hidden_size)
    assert (z[3] == 0).all() and (z[40] == 0).all()
    rng = torch.Generator().manual_seed(2)
    hidden = torch.randn(64, hidden_size, generator=rng).to(dtype)
    scale = torch.rand(64, generator=rng) * 0.01
    out, changed = torch.empty_like(hidden), torch.tensor(0)
    cpu_kernel.add(WORDS, 9, samples, positions, hidden, scale, out, changed)
    assert torch.equal(out, (hidden.float() + scale[:, None] * z).to(dtype))
    assert changed == (out != hidden).sum()
    dots = cpu_kernel.dot(WORDS, 9, samples, positions, hidden)
    torch.testing.assert_close(dots, (hidden.double() * z).sum(1), rtol=1e-12, atol=1e-12)
    alone = cpu_kernel.dot(WORDS, 9, samples[5:6], positions[5:6], hidden[5:6])
    assert torch.equal(dots[5:6], alone)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layer": 4096}, "layer"),
        ({"layer": -1}, "layer"),
        ({"hidden_size": 0}, "channels"),
        ({"channel_start": 4 * 2**20}, "channels"),
        ({"positions": torch.zeros(3, dtype=torch.int64)}, r"\[n\]"),
        ({"positions": torch.zeros(2)}, "int64"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    ids = torch.zeros(2, dtype=torch.int64)
    arguments = {"layer": 0, "sample_ids": ids, "positions": ids, "hidden_size": 8, **change}
    with pytest.raises(ValueError, match=message):
        gaussian(KEY, **arguments)
