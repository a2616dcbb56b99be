"""A tensor's fingerprint, to prove that what arrived is what was sent."""

import hashlib

import torch
from torch import Tensor


def digest(tensor: Tensor) -> str:
    """BLAKE2b-128 (hex) of the tensor's bytes in row-major order. Shape and dtype are not in it."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(raw.numpy(), digest_size=16).hexdigest()
