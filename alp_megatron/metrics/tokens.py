"""Computes metrics over tokens: ratio, mismatch of two policies, what a correction did."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike

from alp_megatron.errors import UserError
from alp_megatron.files import whole

Numerator = Literal["clean", "perturbed"]


@dataclass(frozen=True)
class TokenRatios:
    """Holds arrays [t] over the tokens that the policy sampled; log-probs are in nats.

    Attributes:
        sample_id: int64, which response a token belongs to.
        update: int32, the index of the update within the step that trained on the token: its
            staleness, as that many updates lie between the sampling weights and these.
        rollout_logprobs: float32, of the rollout engine.
        clean_logprobs: float32, of the trainer without noise, just before its update.
        perturbed_logprobs: float32, the numerator of the update's ratio; where the method has no
            noise, the clean ones.
    """

    sample_id: np.ndarray
    update: np.ndarray
    rollout_logprobs: np.ndarray
    clean_logprobs: np.ndarray
    perturbed_logprobs: np.ndarray

    def train_logprobs(self, numerator: Numerator) -> np.ndarray:
        return self.clean_logprobs if numerator == "clean" else self.perturbed_logprobs

    @property
    def has_noise(self) -> bool:
        return not np.array_equal(self.clean_logprobs, self.perturbed_logprobs)

    def save(self, path: Path) -> None:
        """Writes a compressed .npz, whole or not at all."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        with whole(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **arrays)

    @staticmethod
    def load(path: Path) -> "TokenRatios":
        """Raises UserError where the file is not one that `save` wrote."""
        try:
            with np.load(path) as arrays:
                return TokenRatios(**{f.name: arrays[f.name] for f in fields(TokenRatios)})
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise UserError(f"{path} is damaged ({error}): delete it.") from error


PERCENTILES = (1, 2, 50, 98, 99)


def ratio_metrics(
    log_ratio: ArrayLike,
    mask: ArrayLike,
    clip_low: ArrayLike,
    clip_high: ArrayLike,
    dual_clip: ArrayLike,
    prefix: str = "ratio",
) -> dict[str, float]:
    """Returns `{prefix}/...` over the unmasked tokens, in fp64, of arrays or CPU tensors [t].

    `log_ratio` is the objective's, so already clamped. `std` is the population's; percentiles
    interpolate linearly; the clip metrics are shares of the unmasked tokens. At sequence
    level each token counts with its sequence's ratio. An empty batch gives ratio 1, nothing
    clipped.
    """
    keep = np.asarray(mask) > 0
    ratio = np.exp(np.asarray(log_ratio, dtype=np.float64)[keep]) if keep.any() else np.ones(1)
    values = {"mean": ratio.mean(), "std": ratio.std(), "min": ratio.min(), "max": ratio.max()}
    for percent, value in zip(PERCENTILES, np.percentile(ratio, PERCENTILES), strict=True):
        values[f"p{percent:02d}"] = value
    flags = {"clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip}
    for name, flag in flags.items():
        values[name] = np.asarray(flag)[keep].sum() / ratio.size
    return {f"{prefix}/{name}": float(value) for name, value in values.items()}


EXPONENT_LIMIT = 20.0  # every exponent is clamped to +-20, so that every metric is finite


def mismatch_metrics(
    train_logprobs: ArrayLike,
    rollout_logprobs: ArrayLike,
    mask: ArrayLike,
    sequence_index: ArrayLike,
    prefix: str = "mismatch",
) -> dict[str, float]:
    """Returns metrics `{prefix}/...` over a whole global batch, in fp64.

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


def correction_metrics(tokens: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, float]:
    """Returns `correction/...` over the unmasked tokens; nothing where nothing is corrected.

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
