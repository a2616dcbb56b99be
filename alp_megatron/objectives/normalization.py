"""How per-token losses become one loss: an explicit weight for each token."""

from typing import Literal

from torch import Tensor

from alp_megatron.objectives.ratios import sum_by_sequence


def loss_weights(
    mask: Tensor,
    sequence_index: Tensor,
    num_sequences: int,
    *,
    mode: Literal["token", "sequence"],
    num_tokens_global: int,
    num_sequences_global: int,
) -> Tensor:
    """Weights whose products with the per-token losses add up to the loss.

        token:     w_t = m_t / (unmasked tokens of the mini-batch)
        sequence:  w_t = m_t / (unmasked tokens of t's sequence * sequences of the mini-batch)

    The global counts are those of the whole mini-batch: all micro-batches of all
    data-parallel ranks. So the loss of the mini-batch is the plain *sum* over micro-batches
    and ranks, and does not depend on how the sequences were dealt out. A sequence whose
    tokens are all masked has weight 0 everywhere.

    Args:
        mask: [t], 1 or 0.
        sequence_index: int64 [t], in [0, num_sequences).

    Returns:
        [t], in the mask's dtype.
    """
    if mode == "token":
        return mask / max(num_tokens_global, 1)
    length = sum_by_sequence(mask, sequence_index, num_sequences).clamp(min=1)
    return mask / (length * max(num_sequences_global, 1)).to(mask.dtype)[sequence_index]
