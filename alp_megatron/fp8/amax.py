"""The largest absolute values that a linear layer has seen."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alp_megatron.fp8.casts import largest
from alp_megatron.fp8.scales import float32_scale, usable

INPUT, WEIGHT, GRADIENT = range(3)
OPERANDS = ("input", "weight", "gradient")


def tensor_amax(*tensors: Tensor, group: dist.ProcessGroup) -> Tensor:
    """fp32 [n]: the amax of each tensor over the ranks that hold parts of it. Collective."""
    amaxes = torch.stack([amax_of(t.detach()) for t in tensors])
    if dist.get_world_size(group) > 1:
        dist.all_reduce(amaxes, op=dist.ReduceOp.MAX, group=group)
    return amaxes


def amax_of(tensor: Tensor) -> Tensor:
    """fp32 []; 0 of a tensor without elements, as where a rank holds padding alone or no token
    reaches an expert."""
    return tensor.abs().amax().float() if tensor.numel() else torch.zeros((), device=tensor.device)


class AmaxMeter:
    """What the metrics report of one linear layer's operands: since the last `take`, the largest
    amax, and the largest amax in units of what its scale could hold (above 1 values saturated)."""

    def __init__(self):
        self._peaks = torch.zeros(2, len(OPERANDS))

    def see(self, operand: int, amax: Tensor, scale: Tensor | None, dtype: torch.dtype) -> None:
        """`scale` is None where it is made of this very amax."""
        fill = torch.ones(()) if scale is None else amax * scale / largest(dtype)
        self._peaks[:, operand] = torch.maximum(
            self._peaks[:, operand], torch.stack([amax, fill]).nan_to_num()
        )

    def take(self) -> Tensor:
        """fp32 [2, 3]: amax and fill of input, weight and gradient; the meter starts anew."""
        peaks, self._peaks = self._peaks, torch.zeros_like(self._peaks)
        return peaks


class AmaxHistory(nn.Module):
    """The delayed recipe's memory: the last amaxes of input, weight and gradient, and the scales
    made of them. Buffers, so that a checkpoint holds them; fp32 also where the model is cast."""

    def __init__(self, length: int, algorithm: str, margin: int):
        super().__init__()
        self._algorithm, self._margin = algorithm, margin
        self.register_buffer("amaxes", torch.zeros(length, len(OPERANDS)))  # newest first
        self.register_buffer("scales", torch.ones(len(OPERANDS)))

    def scale(self, operand: int, amax: Tensor, dtype: torch.dtype) -> Tensor:
        """That of the history; an operand without one is scaled by its own amax, fp32 []."""
        own = float32_scale(amax, dtype) / 2**self._margin
        return torch.where(self.amaxes[0, operand] > 0, self.scales[operand], own)

    def record(self, operand: int, amax: Tensor, dtype: torch.dtype) -> None:
        """The scale of the operand's next pass. An amax of 0 or one that is not finite is left
        out, as it would make no scale."""
        if not usable(amax):
            return
        column = self.amaxes[:, operand]
        column.copy_(torch.cat([amax.view(1), column[:-1]]))
        chosen = column.amax() if self._algorithm == "max" else amax
        self.scales[operand] = float32_scale(chosen, dtype) / 2**self._margin

    def _apply(self, fn, recurse=True):
        def keep_fp32(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor).device)

        return super()._apply(keep_fp32, recurse)
