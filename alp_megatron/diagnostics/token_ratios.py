"""Both policies' log-probabilities of one step's tokens: what ratio envelopes are made of."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np

from alp_megatron.errors import UserError

Numerator = Literal["clean", "perturbed"]


@dataclass(frozen=True)
class TokenRatios:
    """Arrays [t] over the tokens that the policy sampled, in nats where they are log-probs.

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
        """Write a compressed .npz, whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        with open(partial, "wb") as file:
            np.savez_compressed(file, **{f.name: getattr(self, f.name) for f in fields(self)})
        partial.rename(path)

    @staticmethod
    def load(path: Path) -> "TokenRatios":
        """Raises UserError where the file is not one that `save` wrote."""
        try:
            with np.load(path) as arrays:
                return TokenRatios(**{f.name: arrays[f.name] for f in fields(TokenRatios)})
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise UserError(f"{path} is damaged ({error}): delete it.") from error
