"""The explicit scope inside which a forward pass is perturbed."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from alp_megatron.perturbation.noise import NoiseKey

_key: ContextVar[NoiseKey | None] = ContextVar("noise_key", default=None)


@contextmanager
def perturbation(key: NoiseKey | None) -> Iterator[None]:
    """Micro-batches made inside are perturbed with the key's noise; with None they are not.

    Whoever makes a micro-batch reads `current_key` and gives it a `NoisePlan`. The layers look
    only at the plan: a backward thread that recomputes a layer is outside of every scope.
    """
    token = _key.set(key)
    try:
        yield
    finally:
        _key.reset(token)


def current_key() -> NoiseKey | None:
    """The key of the innermost scope; None, the default, means no noise."""
    return _key.get()
