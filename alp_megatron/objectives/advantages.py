"""Estimates advantages from rewards."""

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, group_ids: Tensor, eps: float = 1e-6) -> Tensor:
    """Returns GRPO's outcome advantage: `(R - mean) / (std + eps)` within each group.

    `std` is the sample standard deviation (n - 1), as `torch.std` gives it and as the usual
    GRPO implementations use it. A group whose rewards are all equal, or that has one
    sample, carries no signal and gets exactly 0.

    Args:
        rewards: [N], finite.
        group_ids: int64 [N]; samples of one prompt share a value.

    Returns:
        fp32 [N]. Computed in fp64. Source: DeepSeekMath (GRPO), section 4.1.
    """
    assert rewards.shape == group_ids.shape and rewards.dim() == 1
    assert torch.isfinite(rewards).all(), "a reward is not finite"
    _, group = group_ids.unique(return_inverse=True)
    groups = int(group.max()) + 1 if len(group) else 0
    reward = rewards.double()
    zeros = reward.new_zeros(groups)

    count = group.bincount(minlength=groups)
    centered = reward - (zeros.index_add(0, group, reward) / count)[group]
    variance = zeros.index_add(0, group, centered.square()) / (count - 1).clamp(min=1)
    advantage = centered / (variance.sqrt() + eps)[group]

    # The mean of equal rewards can differ from them by rounding, so equality is tested itself.
    low = zeros.scatter_reduce(0, group, reward, "amin", include_self=False)
    high = zeros.scatter_reduce(0, group, reward, "amax", include_self=False)
    return advantage.where((low < high)[group], 0.0).float()
