"""How far the training policy is from the rollout engine's, on the sampled tokens."""

import numpy as np
from numpy.typing import ArrayLike

EXPONENT_LIMIT = 20.0  # every exponent is clamped to +-20, so that every metric is finite


def mismatch_metrics(
    train_logprobs: ArrayLike,
    rollout_logprobs: ArrayLike,
    mask: ArrayLike,
    sequence_index: ArrayLike,
    prefix: str = "mismatch",
) -> dict[str, float]:
    """Metrics `{prefix}/...` over a whole global batch, in fp64.

    With `l = train - rollout` at each unmasked token, means over tokens:

        k1, k3                 mean(-l), mean(e^l - l - 1): estimators of KL(rollout || train)
                               (Schulman, "Approximating KL divergence", 2020)
        chi2_token             mean(e^{2 l}) - 1
        chi2_seq               mean over sequences of e^{2 sum l}, - 1
        abs_diff_mean, _max    of |l|, nats
        prob_pearson           correlation of the two probabilities; where one of them does
                               not vary: 1 if they are equal, else 0
        token_mult_prob_error  mean(e^|l|), NeMo-RL's name
        ess                    (sum w)^2 / (n sum w^2) with w = e^l, in (0, 1]

    An empty batch gives the values of two equal policies.

    Args:
        train_logprobs, rollout_logprobs: [t], numpy or CPU tensors without gradient.
        mask: [t], 1 or 0.
        sequence_index: integers [t]; which sequence a token belongs to, unique in the batch.
    """
    keep = np.asarray(mask) > 0
    train = np.asarray(train_logprobs, dtype=np.float64)[keep]
    rollout = np.asarray(rollout_logprobs, dtype=np.float64)[keep]
    if not keep.any():
        train = rollout = np.zeros(1)
        sequence = np.zeros(1, dtype=np.int64)
    else:
        _, sequence = np.unique(np.asarray(sequence_index)[keep], return_inverse=True)

    log_weight = train - rollout
    weight = _exp(log_weight)
    values = {
        "k1": -log_weight.mean(),
        # At |l| near 1e-16 rounding could make a term negative, which k3 never is.
        "k3": np.maximum(np.expm1(_clamp(log_weight)) - log_weight, 0).mean(),
        "chi2_token": _exp(2 * log_weight).mean() - 1,
        "chi2_seq": _exp(2 * np.bincount(sequence, weights=log_weight)).mean() - 1,
        "abs_diff_mean": np.abs(log_weight).mean(),
        "abs_diff_max": np.abs(log_weight).max(),
        "prob_pearson": _pearson(np.exp(train), np.exp(rollout)),
        "token_mult_prob_error": _exp(np.abs(log_weight)).mean(),
        "ess": min(weight.sum() ** 2 / (weight.size * np.square(weight).sum()), 1.0),
    }
    return {f"{prefix}/{name}": float(value) for name, value in values.items()}


def _clamp(exponent: np.ndarray) -> np.ndarray:
    return np.clip(exponent, -EXPONENT_LIMIT, EXPONENT_LIMIT)


def _exp(exponent: np.ndarray) -> np.ndarray:
    return np.exp(_clamp(exponent))


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x_centered, y_centered = x - x.mean(), y - y.mean()
    scale = np.sqrt(np.square(x_centered).sum() * np.square(y_centered).sum())
    if np.ptp(x) == 0 or np.ptp(y) == 0 or scale == 0:
        return float(np.array_equal(x, y))
    return float(np.clip((x_centered * y_centered).sum() / scale, -1, 1))
