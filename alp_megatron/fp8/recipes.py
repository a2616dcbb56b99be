"""Rounds the operands of linear layers by each recipe, and tells layers of their micro-batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alp_megatron.fp8.rounding import (
    BLOCK_SCALES,
    E4M3,
    ScaleRule,
    float32_scale,
    largest,
    round_columns,
    round_rows,
    round_squares,
    round_trip,
    usable,
)


@dataclass(eq=False)
class Fp8Pass:
    """Stands for one forward pass of one micro-batch, and its recomputations.

    It travels with the micro-batch, never on a module: 1F1B runs other micro-batches between a
    forward and its recomputation, which must round with the scales of that forward.

    Attributes:
        tokens: bool [t, 1], False on rows of padding, which are rounded as zeros: what fills a
            row differs between layouts, and would reach the scales.
        records: whether amaxes enter the history: in updates, not in log-probability passes.
        scales: of each linear layer that has run, those of its input and weight, fp32 [2].
    """

    tokens: Tensor
    records: bool
    scales: dict[nn.Module, Tensor] = field(default_factory=dict)


_pass: ContextVar[Fp8Pass | None] = ContextVar("fp8_pass", default=None)


@contextmanager
def fp8_pass(current: Fp8Pass | None) -> Iterator[None]:
    """Makes linear layers inside compute in FP8; with None in high precision.

    Ambient, not an argument: Megatron's attention and MLP call their linear layers with the hidden
    states alone. The transformer layer enters it anew in every forward and recomputation, with
    the pass that came as an argument of its own.
    """
    token = _pass.set(current)
    try:
        yield
    finally:
        _pass.reset(token)


def current_pass() -> Fp8Pass | None:
    return _pass.get()


@contextmanager
def without_fp8(config) -> Iterator[None]:
    """Makes micro-batches inside run in high precision. `config` is the model's PolicyConfig."""
    kept = config.fp8, config.emulated_fp8
    config.fp8 = config.emulated_fp8 = None
    try:
        yield
    finally:
        config.fp8, config.emulated_fp8 = kept


INPUT, WEIGHT, GRADIENT = range(3)
OPERANDS = ("input", "weight", "gradient")


def tensor_amax(*tensors: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Returns each tensor's amax over the ranks that hold parts of it, fp32 [n]. Collective."""
    amaxes = torch.stack([amax_of(t.detach()) for t in tensors])
    if dist.get_world_size(group) > 1:
        dist.all_reduce(amaxes, op=dist.ReduceOp.MAX, group=group)
    return amaxes


def amax_of(tensor: Tensor) -> Tensor:
    """Returns fp32 []; 0 of a tensor without elements, as where a rank holds padding alone or no
    token reaches an expert."""
    return tensor.abs().amax().float() if tensor.numel() else torch.zeros((), device=tensor.device)


class AmaxMeter:
    """Keeps what the metrics report of a linear layer's operands: since the last `take`, the
    largest amax, and the largest in units of what its scale can hold (above 1 values saturated)."""

    def __init__(self):
        self._peaks = torch.zeros(2, len(OPERANDS))

    def see(self, operand: int, amax: Tensor, scale: Tensor | None, dtype: torch.dtype) -> None:
        """Looks at one amax; `scale` is None where it is made of this very amax."""
        fill = torch.ones(()) if scale is None else amax * scale / largest(dtype)
        self._peaks[:, operand] = torch.maximum(
            self._peaks[:, operand], torch.stack([amax, fill]).nan_to_num()
        )

    def take(self) -> Tensor:
        """Returns amax and fill of input, weight and gradient, fp32 [2, 3]; starts anew."""
        peaks, self._peaks = self._peaks, torch.zeros_like(self._peaks)
        return peaks


class AmaxHistory(nn.Module):
    """Is the delayed recipe's memory: the last amaxes of input, weight and gradient, and the scales
    made of them. Buffers, so that a checkpoint holds them; fp32 also where the model is cast."""

    def __init__(self, length: int, algorithm: str, margin: int):
        super().__init__()
        self._algorithm, self._margin = algorithm, margin
        self.register_buffer("amaxes", torch.zeros(length, len(OPERANDS)))  # newest first
        self.register_buffer("scales", torch.ones(len(OPERANDS)))

    def scale(self, operand: int, amax: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the history's scale; for an operand without one, its own amax's, fp32 []."""
        own = float32_scale(amax, dtype) / 2**self._margin
        return torch.where(self.amaxes[0, operand] > 0, self.scales[operand], own)

    def record(self, operand: int, amax: Tensor, dtype: torch.dtype) -> None:
        """Makes the scale of the operand's next pass. An amax of 0 or one that is not finite is
        left out, as it would make no scale."""
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


# How each recipe rounds the operands of a linear layer's three products.
#
# With x [t, k] (input), w [n, k] (weight) and g [t, n] (gradient of the output):
#
#     y  = x w^T     contracts k
#     dx = g w       contracts n
#     dw = g^T x     contracts t

Pair = tuple[Tensor, Tensor]


class Recipe(Protocol):
    """Rounds operands, fp32 in and fp32 out. `scales` is what `product` returned beside them."""

    def product(self, x: Tensor, w: Tensor, run: Fp8Pass) -> tuple[Pair, Tensor | None]: ...

    def gradients(
        self, g: Tensor, x: Tensor, w: Tensor, scales: Tensor | None, run: Fp8Pass
    ) -> tuple[Pair, Pair]:
        """Returns (g, w) for dx, and (g, x) for dw."""
        ...


@dataclass
class PerTensor:
    """Takes one scale for a tensor: of its present amax, or with a history of those before.

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
    """Takes one scale for each block of `size` elements along the contracted dimension; with
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
    """Returns blocks of 128 x 128 for weights, else of 1 x 128; scales are powers of two."""
    return Blocks(*BLOCK_SCALES["blockwise"], True, gradient_dtype, meter)


def mxfp8(gradient_dtype: torch.dtype, meter: AmaxMeter) -> Blocks:
    """Returns blocks of 1 x 32 for all, with E8M0 scales."""
    return Blocks(*BLOCK_SCALES["mxfp8"], False, gradient_dtype, meter)
