"""The veto: one catastrophic token spoils its sequence."""

from torch import Tensor

from alp_megatron.objectives.ratios import sum_by_sequence


def without_veto(
    log_weight: Tensor, mask: Tensor, sequence_index: Tensor, num_sequences: int, threshold: float
) -> Tensor:
    """False for every token of a sequence in which some unmasked w_t is below the threshold.

    It looks at w = pi_old / pi_rollout only from below: tokens that the engine sampled and the
    trainer finds next to impossible. Source: Liu et al. 2025, "When speed kills stability".

    Args:
        log_weight: fp64 [t], log w of each token.
        threshold: of w, for example 1e-4.

    Returns:
        bool [t].
    """
    catastrophic = (log_weight.exp() < threshold) & (mask > 0)
    return (sum_by_sequence(catastrophic, sequence_index, num_sequences) == 0)[sequence_index]
