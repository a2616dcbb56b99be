"""RMSNorm for the local layer spec."""

import torch


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, marked for Megatron to sum its gradient over TP if sequences are split.

    Megatron's own wrapper around torch's norm refuses sequence parallelism.
    """

    def __init__(self, config, hidden_size: int, eps: float = 1e-5, **_):
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel
