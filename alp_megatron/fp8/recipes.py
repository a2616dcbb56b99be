"""How each recipe rounds the operands of a linear layer's three products.

With x [t, k] (input), w [n, k] (weight) and g [t, n] (gradient of the output):

    y  = x w^T     contracts k
    dx = g w       contracts n
    dw = g^T x     contracts t
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from alp_megatron.fp8.amax import (
    GRADIENT,
    INPUT,
    WEIGHT,
    AmaxHistory,
    AmaxMeter,
    amax_of,
    tensor_amax,
)
from alp_megatron.fp8.blocks import ScaleRule, round_columns, round_rows, round_squares
from alp_megatron.fp8.casts import E4M3, round_trip
from alp_megatron.fp8.scales import BLOCK_SCALES, float32_scale
from alp_megatron.fp8.scope import Fp8Pass

Pair = tuple[Tensor, Tensor]


class Recipe(Protocol):
    """Rounds operands, fp32 in and fp32 out. `scales` is what `product` returned beside them."""

    def product(self, x: Tensor, w: Tensor, run: Fp8Pass) -> tuple[Pair, Tensor | None]: ...

    def gradients(
        self, g: Tensor, x: Tensor, w: Tensor, scales: Tensor | None, run: Fp8Pass
    ) -> tuple[Pair, Pair]:
        """(g, w) for dx, and (g, x) for dw."""
        ...


@dataclass
class PerTensor:
    """One scale for a tensor: of its present amax, or with a history of those before.

    group: the ranks whose amaxes are merged, so that the scale does not depend on the layout.
    """

    owner: torch.nn.Module
    gradient_dtype: torch.dtype
    group: torch.distributed.ProcessGroup
    meter: AmaxMeter
    history: AmaxHistory | None = None

    def product(self, x, w, run):
        scales = run.scales.get(self.owner)
        if scales is None:  # else this is a recomputation
            amaxes = tensor_amax(x, w, group=self.group)
            pairs = zip((INPUT, WEIGHT), amaxes, strict=True)
            scales = torch.stack([self._scale(i, amax, E4M3, run) for i, amax in pairs])
            if self.history is not None:
                run.scales[self.owner] = scales
        return (round_trip(x, scales[0], E4M3), round_trip(w, scales[1], E4M3)), scales

    def gradients(self, g, x, w, scales, run):
        (amax,) = tensor_amax(g, group=self.group)
        scale = self._scale(GRADIENT, amax, self.gradient_dtype, run)
        g = round_trip(g, scale, self.gradient_dtype)
        return (g, round_trip(w, scales[1], E4M3)), (g, round_trip(x, scales[0], E4M3))

    def _scale(self, operand: int, amax: Tensor, dtype: torch.dtype, run: Fp8Pass) -> Tensor:
        if self.history is None:
            scale = float32_scale(amax, dtype)
        else:
            scale = self.history.scale(operand, amax, dtype)
        if run.records:
            self.meter.see(operand, amax, None if self.history is None else scale, dtype)
            if self.history is not None:
                self.history.record(operand, amax, dtype)
        return scale


@dataclass
class Blocks:
    """One scale for each block of `size` elements along the contracted dimension; with
    `square_weights`, for each size x size of the weight.

    Blocks begin where a rank's shard begins: they are the same in every layout whose shards are
    multiples of `size`.
    """

    size: int
    rule: ScaleRule
    square_weights: bool
    gradient_dtype: torch.dtype
    meter: AmaxMeter

    def product(self, x, w, run):
        if run.records:
            self._meter(INPUT, x)
            self._meter(WEIGHT, w)
        return (round_rows(x, self.size, E4M3, self.rule), self._weight(w, round_rows)), None

    def gradients(self, g, x, w, scales, run):
        if run.records:
            self._meter(GRADIENT, g)
        kind = self.gradient_dtype
        return (
            (round_rows(g, self.size, kind, self.rule), self._weight(w, round_columns)),
            (
                round_columns(g, self.size, kind, self.rule),
                round_columns(x, self.size, E4M3, self.rule),
            ),
        )

    def _weight(self, w: Tensor, along_contraction) -> Tensor:
        rounding = round_squares if self.square_weights else along_contraction
        return rounding(w, self.size, E4M3, self.rule)

    def _meter(self, operand: int, tensor: Tensor) -> None:
        self.meter.see(operand, amax_of(tensor.detach()), None, E4M3)


def blockwise(gradient_dtype: torch.dtype, meter: AmaxMeter) -> Blocks:
    """128 x 128 for weights, 1 x 128 for inputs and gradients, scales that are powers of two."""
    return Blocks(*BLOCK_SCALES["blockwise"], True, gradient_dtype, meter)


def mxfp8(gradient_dtype: torch.dtype, meter: AmaxMeter) -> Blocks:
    """1 x 32 for all, E8M0 scales."""
    return Blocks(*BLOCK_SCALES["mxfp8"], False, gradient_dtype, meter)
