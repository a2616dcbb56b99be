"""The CUDA noise kernel: the CPU's noise, and nearly the speed of a copy."""

import torch

from benchmarks.gpu.part import Found, Goal, need
from benchmarks.gpu.timing import milliseconds

TOKENS, HIDDEN = 16384, 4096


def noise_agrees() -> Found:
    """Normals of awkward keys against the CPU kernel, and the changed elements of h + sigma z.

    The Philox integers are not visible by themselves: a wrong bit in one of them would be a normal
    that is wrong by far more than 1e-6.
    """
    need("triton", "numba")
    from alp_megatron.perturbation import NoiseKey, NoiseRows, add_noise, gaussian

    key = NoiseKey(2**62 + 5, 7, 3)
    sample_ids = torch.arange(1000) * (2**40 + 11)
    positions = (torch.arange(1000) * 1_000_003) % 2**32
    cpu = gaussian(key, 31, sample_ids, positions, 1027)
    ours = gaussian(key, 31, sample_ids.cuda(), positions.cuda(), 1027).cpu()
    changed = []
    for device in ("cpu", "cuda"):
        noise = NoiseRows(key, sample_ids.to(device), positions.to(device))
        hidden = torch.linspace(-3, 3, 1000 * 256, device=device).view(1000, 256).bfloat16()
        add_noise(hidden, torch.zeros(1, device=device), 0.01, noise, 0)
        assert noise.counts is not None
        changed.append(int(noise.counts["noise_changed"]))
    difference = float((ours - cpu).abs().max())
    share = abs(changed[0] - changed[1]) / noise.sample_ids.numel() / 256
    return Found(
        {"normals": ours.numel(), "max_abs_difference": difference, "changed": changed},
        [
            Goal("largest difference of a normal", difference, at_most=1e-6),
            Goal("share of bf16 elements changed on one device only", share, at_most=1e-3),
        ],
    )


def noise_bandwidth() -> Found:
    """h + sigma z in bf16, which reads and writes as many bytes as a copy of h."""
    need("triton")
    from alp_megatron.perturbation import NoiseKey
    from alp_megatron.perturbation.triton_kernel import add

    words = torch.tensor(NoiseKey(1, 2, 3).words(), dtype=torch.int64, device="cuda")
    rows = torch.arange(TOKENS, device="cuda")
    hidden = torch.randn(TOKENS, HIDDEN, device="cuda", dtype=torch.bfloat16)
    out, scale = torch.empty_like(hidden), torch.full((TOKENS,), 0.01, device="cuda")
    changed = torch.zeros((), dtype=torch.int64, device="cuda")
    noise = milliseconds(lambda: add(words, 0, rows, rows, hidden, scale, out, changed))
    copy = milliseconds(lambda: out.copy_(hidden))
    bandwidth = {
        f"{name}_gb_per_s": 2 * hidden.nbytes / ms / 1e6
        for name, ms in (("noise", noise), ("copy", copy))
    }
    return Found(
        bandwidth | {"noise_ms": noise, "copy_ms": copy},
        [Goal("share of a copy's bandwidth", copy / noise, at_least=0.8)],
        f"[{TOKENS}, {HIDDEN}] bf16",
    )
