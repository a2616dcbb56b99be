"""The noise of one micro-batch on one rank."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from alp_megatron.perturbation.key import NoiseKey


@dataclass(eq=False)
class NoisePlan:
    """Which noise the rows of one micro-batch get, and how much of it survived rounding.

    sample_ids, positions: int64 [n], one entry for each row of hidden states that this rank
    holds, in the order of [s, b] flattened; a negative sample id marks padding, which gets no
    noise and is not counted.

    The plan travels with its micro-batch, never on a module: recompute and 1F1B pipelining
    run other micro-batches between the forward and the backward of this one.
    """

    key: NoiseKey
    sample_ids: Tensor
    positions: Tensor
    samples_fp8: bool = False  # whether FP8 layers fill in the two counts of theirs
    # The key's words live on the device so that a captured CUDA graph reads, not bakes in, them.
    key_words: Tensor = field(init=False)  # int64 [2]
    rows: Tensor = field(init=False)  # int64 [], rows that are not padding
    changed: Tensor = field(init=False)  # int64 [], hidden elements that the noise changed
    total: Tensor = field(init=False)  # int64 [], hidden elements that got noise
    fp8_changed: Tensor = field(init=False)  # int64 [], FP8 codes that the noise changed
    fp8_total: Tensor = field(init=False)  # int64 [], FP8 codes that were looked at

    def __post_init__(self):
        assert self.sample_ids.dim() == 1 and self.sample_ids.shape == self.positions.shape
        assert self.sample_ids.dtype == self.positions.dtype == torch.int64
        device = self.sample_ids.device
        self.key_words = torch.tensor(self.key.words(), dtype=torch.int64, device=device)
        self.rows = (self.sample_ids >= 0).sum()
        for count in ("changed", "total", "fp8_changed", "fp8_total"):
            setattr(self, count, torch.zeros((), dtype=torch.int64, device=device))

    @property
    def effective_fraction(self) -> Tensor:
        """changed / total, fp64 [], NaN if nothing was perturbed. To pool over plans or ranks
        add the two counts first."""
        return self.changed.double() / self.total
