"""The logits-only ablation: noise after the last layer instead of before each."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alp_megatron.perturbation.backend import kernels
from alp_megatron.perturbation.philox import MAX_LAYERS
from alp_megatron.perturbation.plan import NoisePlan

LOGITS_LAYER = MAX_LAYERS - 1  # in the noise's address: no decoder layer has this number


@dataclass(frozen=True, eq=False)
class LogitsNoise:
    """sigma * z for the rows whose next token is scored, under the contract of all noise.

    The channel is the token id in the whole vocabulary, so that every vocabulary shard draws its
    own part of the same noise. sigma is fixed: nothing learns it.

    Attributes:
        plan: of the micro-batch, for its key.
        sample_ids, positions: int64 [n], of the predicting rows.
    """

    plan: NoisePlan
    sigma: float
    sample_ids: Tensor
    positions: Tensor

    def add_to(self, logits: Tensor, rows: slice, first_token: int) -> None:
        """Adds to fp32 [rows, v] in place; column 0 is the token `first_token`."""
        noise = torch.empty_like(logits)
        kernels(logits.device).fill(
            self.plan.key_words,
            LOGITS_LAYER,
            self.sample_ids[rows],
            self.positions[rows],
            first_token,
            noise,
        )
        logits.add_(noise, alpha=self.sigma)
