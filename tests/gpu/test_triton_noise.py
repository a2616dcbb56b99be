"""The CUDA kernels against the CPU kernels and the float64 reference."""

import pytest
import torch

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from alp_megatron.perturbation import NoiseKey, NoiseRows, add_noise, gaussian  # noqa: E402
from alp_megatron.perturbation.philox import reference_gaussian  # noqa: E402

KEY = NoiseKey(seed=2**62 + 5, step=7, update=3)


def _rows(n):
    sample_ids = torch.arange(n) * (2**40 + 11)
    sample_ids[1::7] = -1
    return sample_ids, (torch.arange(n) * 1_000_003) % 2**32


@pytest.mark.parametrize("hidden_size, channel_start", [(64, 0), (1024, 3), (1027, 4094)])
def test_gaussian_agrees_with_cpu(hidden_size, channel_start):
    sample_ids, positions = _rows(1000)
    args = (hidden_size,)
    ours = gaussian(
        KEY, 31, sample_ids.cuda(), positions.cuda(), *args, channel_start=channel_start
    )
    cpu = gaussian(KEY, 31, sample_ids, positions, *args, channel_start=channel_start)
    torch.testing.assert_close(ours.cpu(), cpu, rtol=0, atol=1e-6)
    exact = reference_gaussian(
        KEY.words(), 31, sample_ids.numpy(), positions.numpy(), hidden_size, channel_start
    )
    exact[sample_ids.numpy() < 0] = 0
    torch.testing.assert_close(ours.cpu().double(), torch.from_numpy(exact), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["absolute", "relative"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_add_noise_agrees_with_cpu(dtype, mode):
    sample_ids, positions = _rows(500)
    hidden = torch.randn(250, 2, 1028).to(dtype)
    weight = torch.randn(hidden.shape)
    results = []
    for device in ("cpu", "cuda"):
        noise = NoiseRows(KEY, sample_ids.to(device), positions.to(device))
        h = hidden.to(device).requires_grad_()
        scale = torch.full((1,), 0.3, device=device, requires_grad=True)
        out = add_noise(h, scale, 0.01, noise, 5, mode)
        (out.float() * weight.to(device)).sum().backward()
        results.append(
            (out, h.grad, scale.grad, noise.counts["noise_changed"], noise.counts["noise_total"])
        )
    (out, *_, changed, total), (cuda_out, *_, cuda_changed, cuda_total) = results
    step = 1e-6 if dtype == torch.float32 else 2**-6  # bf16: one unit where a sum is near a tie
    torch.testing.assert_close(cuda_out.cpu().float(), out.float(), rtol=0, atol=step)
    assert (cuda_out.cpu() != out).float().mean() < (1 if dtype == torch.float32 else 1e-3)
    assert torch.equal(results[1][1].cpu(), results[0][1])
    torch.testing.assert_close(results[1][2].cpu(), results[0][2], rtol=1e-5, atol=1e-6)
    assert cuda_total.item() == total.item()
    assert abs(cuda_changed.item() - changed.item()) < 1e-3 * total.item()


def test_a_captured_graph_follows_the_key():
    sample_ids, positions = (t.cuda() for t in _rows(64))
    noise = NoiseRows(KEY, sample_ids, positions)
    hidden = torch.randn(64, 256, device="cuda")
    scale = torch.zeros(1, device="cuda")
    add_noise(hidden, scale, 0.1, noise, 0)  # compile before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = add_noise(hidden, scale, 0.1, noise, 0)
    other = NoiseRows(NoiseKey(1, 2, 4), sample_ids, positions)
    noise.key_words.copy_(other.key_words)
    graph.replay()
    assert torch.equal(out, add_noise(hidden, scale, 0.1, other, 0))
