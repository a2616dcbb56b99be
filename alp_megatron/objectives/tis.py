"""Truncated importance sampling."""

from torch import Tensor


def truncated_weight(log_weight: Tensor, high: float) -> Tensor:
    """TIS: min(w, C), the factor of a token's loss.

    Sources: Ionides 2008, "Truncated importance sampling"; Yao et al. 2025, "Your efficient
    RL framework secretly brings you off-policy RL training", for w = pi_old / pi_rollout.

    Args:
        log_weight: [t], log w of the token, or of its sequence.
        high: C.
    """
    return log_weight.exp().clamp(max=high)
