"""Implements Adaptive Layerwise Perturbation: noise, its scale, and the layer that applies it."""

from alp_megatron.perturbation.add_noise import add_noise
from alp_megatron.perturbation.noise import NoiseKey, NoiseRows, assert_keys_agree, gaussian

__all__ = [
    "NoiseKey",
    "NoiseRows",
    "PerturbedTransformerLayer",
    "add_noise",
    "assert_keys_agree",
    "gaussian",
]


def __getattr__(name: str):
    # Imported when asked for: it brings all of Megatron, which the noise does not need.
    if name == "PerturbedTransformerLayer":
        from alp_megatron.perturbation.layer import PerturbedTransformerLayer

        return PerturbedTransformerLayer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
