"""What the formats' scales have in common."""

import torch
from torch import Tensor

# The scale of what is all zeros (compressed-tensors' choice): any will do, but none may be 0.
OF_ZEROS = 2.0**-23


def nonzero(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, OF_ZEROS, scales)
