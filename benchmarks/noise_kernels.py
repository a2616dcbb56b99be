"""The noise kernels of this machine's CPU against torch's own normals, on one thread."""

import torch

from alp_megatron.perturbation import NoiseKey
from alp_megatron.perturbation.cpu_kernel import add, dot
from benchmarks.rounds import seconds_by_rounds
from benchmarks.row import Row, compare

TOKENS, HIDDEN = 1024, 1024


def noise_kernels() -> list[Row]:
    """Nanoseconds for each normal; `add` and `dot` read and write the hidden states as well."""
    torch.set_num_threads(1)
    words = torch.tensor(NoiseKey(1, 2, 3).words(), dtype=torch.int64)
    sample_ids, positions = torch.arange(TOKENS) // 64, torch.arange(TOKENS) % 64
    rows = (words, 0, sample_ids, positions)
    hidden, out = torch.randn(TOKENS, HIDDEN), torch.empty(TOKENS, HIDDEN)
    scale, changed = torch.full((TOKENS,), 0.01), torch.zeros((), dtype=torch.int64)
    seconds = seconds_by_rounds(
        {
            "add": lambda: add(*rows, hidden, scale, out, changed),
            "dot": lambda: dot(*rows, hidden),
            "randn": lambda: torch.randn(TOKENS, HIDDEN, out=out),
        },
        rounds=50,
    )
    nanoseconds = {k: [s / hidden.numel() * 1e9 for s in v] for k, v in seconds.items()}
    return [
        Row(
            f"noise kernel: {name}",
            "ns/normal",
            **compare(nanoseconds[name], nanoseconds["randn"]),
            reference_name=f"torch.randn of [{TOKENS}, {HIDDEN}] fp32, one thread",
        )
        for name in ("add", "dot")
    ]
