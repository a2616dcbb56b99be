"""Picks the noise kernels of a device. They are imported on first use: numba and Triton are slow
to import, and a machine needs only one of them."""

from types import ModuleType

import torch


def kernels(device: torch.device) -> ModuleType:
    """The module with `fill`, `add` and `dot` for the device."""
    if device.type == "cuda":
        from alp_megatron.perturbation import triton_kernel

        return triton_kernel
    from alp_megatron.perturbation import cpu_kernel

    return cpu_kernel
