"""The key of one optimizer update's noise."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from alp_megatron.perturbation.philox import philox4x32

# Separates this use of Philox from any other under the same seed: "ALP noise" in ASCII.
_DOMAIN = (0x414C5020, 0x6E6F6973)


@dataclass(frozen=True)
class NoiseKey:
    """Names the noise of one optimizer update: all its ranks and micro-batches share it.

    seed: the run's seed, below 2**63. step: the rollout step, below 2**32. update: the
    index of the update within the step, below 2**32. Raises ValueError otherwise.
    """

    seed: int
    step: int
    update: int

    def __post_init__(self):
        for name, bits in (("seed", 63), ("step", 32), ("update", 32)):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 2**bits:
                raise ValueError(
                    f"NoiseKey.{name} must be an integer from 0 to 2**{bits} - 1, not {value!r}"
                )

    def words(self) -> tuple[int, int]:
        """The two uint32 Philox key words of this update.

        One Philox block over (step, update, domain) under the seed, cut to 64 bits. Before
        the cut the map is a bijection for each seed; after it, two given keys share their
        words with probability 2**-64, and some two of the n keys of a run with probability
        about n**2 / 2**65: 3e-8 for a million updates.
        """
        return _words(self.seed, self.step, self.update)


@lru_cache(maxsize=16)
def _words(seed: int, step: int, update: int) -> tuple[int, int]:
    counter = np.array([step, update, *_DOMAIN], dtype=np.uint32)
    block = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    return int(block[0]), int(block[1])
