"""Counts things in the micro-batches of an update, and adds them up over all ranks once."""

from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

# noise_total, noise_changed: hidden elements that got noise, and that it changed.
# fp8_total, fp8_changed: FP8 codes that were looked at, and that the noise changed.
# tokens, padding: rows that go through the model, and those of no use.
_NAMES = ("noise_total", "noise_changed", "fp8_total", "fp8_changed", "tokens", "padding")


class Counts:
    """Holds the counts of one micro-batch on this rank, on its device.

    Attributes:
        of_fp8: whether the FP8 layers shall count: it costs them two norms and roundings each.
    """

    def __init__(self, device: torch.device):
        self.of_fp8 = False
        # One tensor, made before any layer runs: kernels and captured graphs add to it in place.
        self._values = torch.zeros(len(_NAMES), dtype=torch.int64, device=device)

    def __getitem__(self, name: str) -> Tensor:
        """Returns the count itself, int64 [], which may be added to in place."""
        return self._values[_NAMES.index(name)]

    def add(self, name: str, number: int | Tensor) -> None:
        self[name].add_(number)

    @staticmethod
    def over_all_ranks(counts: Sequence["Counts"]) -> Counter[str]:
        """Returns the sums by name, the same on every rank. Collective: one message."""
        total = torch.stack([each._values for each in counts]).sum(0)
        dist.all_reduce(total)
        return Counter(dict(zip(_NAMES, total.tolist(), strict=True)))
