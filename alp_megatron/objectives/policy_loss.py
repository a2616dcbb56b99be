"""The clipped policy objective."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """Per-token losses and which of them carry no gradient because of clipping; each [t].

    The three flags are disjoint. A ratio that is out of bounds on the side that the
    objective does not clip (A > 0 and r < 1 - eps_low, for one) still has its gradient and
    is not flagged.
    """

    per_token: Tensor
    clip_low: Tensor  # A < 0 and r < 1 - eps_low
    clip_high: Tensor  # A > 0 and r > 1 + eps_high
    dual_clip: Tensor  # A < 0 and r > dual_clip


def clipped_policy_loss(
    log_ratio: Tensor,
    advantages: Tensor,
    *,
    eps_low: float,
    eps_high: float,
    dual_clip: float | None,
) -> PolicyLoss:
    """PPO's clipped loss with asymmetric bounds and a dual clip for negative advantages.

        L1 = max(-A r, -A clip(r, 1 - eps_low, 1 + eps_high))
        L  = min(L1, -A c)  where A < 0,  else L1

    Args:
        log_ratio: [t], with gradient.
        advantages: [t].
        dual_clip: c > 1, or None for no dual clip.

    Sources: PPO (Schulman et al. 2017, eq. 7); dual clip: Ye et al. 2020, eq. 5.
    """
    low, high = 1.0 - eps_low, 1.0 + eps_high
    ratio = log_ratio.exp()
    negative = advantages < 0

    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high))
    dual = torch.zeros_like(negative)
    if dual_clip is not None:
        dual = negative & (ratio > dual_clip)
        loss = torch.where(dual, -advantages * dual_clip, loss)
    return PolicyLoss(
        per_token=loss,
        clip_low=negative & (ratio < low),
        clip_high=(advantages > 0) & (ratio > high),
        dual_clip=dual,
    )
