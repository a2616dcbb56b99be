"""What the FP8 layers must know of the micro-batch that runs through them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(eq=False)
class Fp8Pass:
    """One forward pass of one micro-batch, and its recomputations.

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
    """Linear layers inside compute in FP8; with None in high precision."""
    token = _pass.set(current)
    try:
        yield
    finally:
        _pass.reset(token)


def current_pass() -> Fp8Pass | None:
    return _pass.get()


@contextmanager
def without_fp8(config) -> Iterator[None]:
    """Micro-batches made inside run in high precision. `config` is the model's PolicyConfig."""
    kept = config.fp8, config.emulated_fp8
    config.fp8 = config.emulated_fp8 = None
    try:
        yield
    finally:
        config.fp8, config.emulated_fp8 = kept
