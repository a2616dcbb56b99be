"""What a correction did to one global batch."""

import numpy as np


def correction_metrics(tokens: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, float]:
    """`correction/...` over the unmasked tokens; nothing where the objective corrects nothing.

        rejected_tokens      share of the tokens that take no part in the loss
        rejected_sequences   share of the sequences of which no token takes part
        weight_mean, _max    of the factor of a token's loss, 0 where it is rejected

    Args:
        tokens: `weight`, `kept` and `sample_id`, each [t]; without the first two, nothing.
        mask: [t], 1 or 0. An empty one counts as nothing rejected, with weight 1.
    """
    if "weight" not in tokens:
        return {}
    unmasked = mask > 0
    if not unmasked.any():
        weight, kept, ids = np.ones(1), np.ones(1, bool), np.zeros(1)
    else:
        weight, kept, ids = (tokens[name][unmasked] for name in ("weight", "kept", "sample_id"))
    return {
        "correction/rejected_tokens": float(1 - kept.mean()),
        "correction/rejected_sequences": 1 - len(np.unique(ids[kept])) / len(np.unique(ids)),
        "correction/weight_mean": float(weight.mean()),
        "correction/weight_max": float(weight.max()),
    }
