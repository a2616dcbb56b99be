"""Masked importance sampling, in both meanings of the name; IcePop is one of them."""

from torch import Tensor


def in_window(log_weight: Tensor, low: float, high: float) -> Tensor:
    """1[lo <= w <= hi], bool [t]: MIS as a plain mask, both bounds included.

    `log_weight` is that of the token, of its sequence (e^S) or of its sequence per token (e^G):
    which one decides what is masked together, not how the policy's own ratio is made.
    """
    weight = log_weight.exp()
    return (weight >= low) & (weight <= high)


def masked_weight(log_weight: Tensor, low: float, high: float) -> Tensor:
    """w 1[lo <= w <= hi]: MIS as a weight that is 0 outside of the window, [t].

    Sources: Liu et al. 2025, "When speed kills stability" (token and sequence); at the token
    level with [0.5, 5] it is IcePop, Ling team 2025, "Every step evolves".
    """
    return log_weight.exp().where(in_window(log_weight, low, high), 0.0)
