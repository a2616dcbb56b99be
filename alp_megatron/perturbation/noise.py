"""Names the noise: its key, the rows that get it, and z as a function of these."""

from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from alp_megatron.errors import UserError
from alp_megatron.metrics.counts import Counts
from alp_megatron.perturbation.philox import MAX_CHANNELS, MAX_LAYERS, philox4x32
from alp_megatron.runtime.device import on_device
from alp_megatron.runtime.mesh import from_every_rank

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
        """Returns the two uint32 Philox key words of this update.

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


@dataclass(eq=False)
class NoiseRows:
    """Names the noise of each row of one micro-batch, and counts how much of it survives rounding.

    sample_ids, positions: int64 [n], one entry for each row of hidden states that this rank
    holds, in the order of [s, b] flattened; a negative sample id marks padding, which gets no
    noise and is not counted.

    It travels with its micro-batch, never on a module: recompute and 1F1B pipelining run other
    micro-batches between the forward and the backward of this one.
    """

    key: NoiseKey
    sample_ids: Tensor
    positions: Tensor
    counts: Counts | None = None  # the micro-batch's; its own if not given
    # The key's words live on the device so that a captured CUDA graph reads, not bakes in, them.
    key_words: Tensor = field(init=False)  # int64 [2]
    rows: Tensor = field(init=False)  # int64 [], rows that are not padding

    def __post_init__(self):
        assert self.sample_ids.dim() == 1 and self.sample_ids.shape == self.positions.shape
        assert self.sample_ids.dtype == self.positions.dtype == torch.int64
        device = self.sample_ids.device
        self.key_words = on_device(self.key.words(), torch.int64, device)
        self.rows = (self.sample_ids >= 0).sum()
        if self.counts is None:
            self.counts = Counts(device)


def kernels(device: torch.device) -> ModuleType:
    """Returns the module with `fill`, `add` and `dot` for the device.

    Imported on first use: numba and Triton are slow to import, and a machine needs only one.
    """
    if device.type == "cuda":
        from alp_megatron.perturbation import triton_kernel

        return triton_kernel
    from alp_megatron.perturbation import cpu_kernel

    return cpu_kernel


def gaussian(
    key: NoiseKey,
    layer: int,
    sample_ids: Tensor,
    positions: Tensor,
    hidden_size: int,
    *,
    channel_start: int = 0,
) -> Tensor:
    """Returns z(key, layer, sample, position, channel) ~ N(0, 1), the same bits at every call.

    sample_ids, positions: int64 [n], on the device that shall hold the result; positions are
    below 2**32; rows with a negative sample id are padding and get 0. layer: the global layer
    number, from 0. Returns fp32 [n, hidden_size], channels channel_start onwards. Raises
    ValueError for arguments outside these.
    """
    if sample_ids.dim() != 1 or sample_ids.shape != positions.shape:
        raise ValueError(
            f"sample_ids and positions must be [n] both, not {tuple(sample_ids.shape)} "
            f"and {tuple(positions.shape)}"
        )
    if sample_ids.dtype != torch.int64 or positions.dtype != torch.int64:
        raise ValueError(
            f"sample_ids and positions must be int64, not {sample_ids.dtype} and {positions.dtype}"
        )
    if not 0 <= layer < MAX_LAYERS:
        raise ValueError(f"layer must lie in [0, {MAX_LAYERS}), not be {layer}")
    if hidden_size < 1 or not 0 <= channel_start <= MAX_CHANNELS - hidden_size:
        raise ValueError(
            f"channels {channel_start} to {channel_start + hidden_size} must lie in "
            f"[0, {MAX_CHANNELS})"
        )
    device = sample_ids.device
    words = on_device(key.words(), torch.int64, device)
    out = torch.empty(len(sample_ids), hidden_size, dtype=torch.float32, device=device)
    kernels(device).fill(words, layer, sample_ids, positions, channel_start, out)
    return out


def assert_keys_agree(key: NoiseKey, group: dist.ProcessGroup | None = None) -> None:
    """Raises UserError on every rank of the group if their keys differ. Collective.

    Call it at the start and at each resume: ranks of a tensor-parallel group with different
    keys would train on inconsistent hidden states without any other sign.
    """
    held = from_every_rank((dist.get_rank(), key.seed, key.step, key.update), group)
    ranks_of: dict[NoiseKey, list[int]] = {}
    for rank, *fields in held:
        ranks_of.setdefault(NoiseKey(*fields), []).append(rank)
    if len(ranks_of) > 1:
        parts = [f"ranks {ranks} hold {other}" for other, ranks in ranks_of.items()]
        raise UserError(
            f"the noise keys of ranks that must share their noise differ: {', '.join(parts)}; "
            "start all of them with one seed, from one checkpoint"
        )
