"""Noise in the rollout engine's weights: a mismatch of any strength, for dose-response curves."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from alp_megatron.perturbation import NoiseKey
from alp_megatron.perturbation.gaussian import gaussian
from alp_megatron.weights.quantize.scheme import is_linear


@dataclass(frozen=True)
class WeightNoise:
    """W + scale * rms(W) * z in every linear layer of the decoder, as a quantiser would err.

    z ~ N(0, 1) is drawn anew for each version, by the counter-based generator of all noise: its
    bits depend on seed, version, tensor, row and column, and not on the layout.
    """

    scale: float
    seed: int

    def added(
        self, stream: Iterable[tuple[str, Tensor]], version: int
    ) -> Iterator[tuple[str, Tensor]]:
        """(HF name, whole tensor [n, k]) -> the same with noise, in the tensor's dtype."""
        key = NoiseKey(self.seed, version, 0)
        for name, tensor in stream:
            if is_linear(name):
                weight = tensor.float()
                z = self._normals(key, name, weight)
                tensor = (weight + self.scale * weight.square().mean().sqrt() * z).to(tensor.dtype)
            yield name, tensor

    def _normals(self, key: NoiseKey, name: str, weight: Tensor) -> Tensor:
        # Far above the sample ids, which count from 0: no response's noise has this counter.
        ident = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7]) | 2**56
        rows = torch.arange(len(weight), device=weight.device)
        return gaussian(key, 0, torch.full_like(rows, ident), rows, weight.shape[1])
