"""What moves weights from the trainer's rank 0 to one or several running engines.

A transport is the trainer's end; `rollout/vllm_receivers.py` has the engines' ends, registered
with vLLM's weight-transfer API. The API carries the few bytes that say what comes next, over HTTP;
the transport carries the tensors, a bucket at a time. Whoever drives the update pauses generation
before it, and drops the prefix caches and sets the engines' version after it.
"""

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor


class Receivers(Protocol):
    """The engines of an update. Both calls return when every engine has done its part."""

    @property
    def count(self) -> int: ...

    def connect(self, infos: list[dict[str, Any]]) -> None:
        """vLLM's `init_weight_transfer_engine`, with one `info` for each engine."""

    def receive(self, info: dict[str, Any]) -> None:
        """vLLM's `update_weights`: load what the transport has made ready, or is sending."""


class Transport(Protocol):
    """
    Attributes:
        collective: the engines receive together, so one that is lost stalls the others.
    """

    collective: bool

    def connect(self, receivers: Receivers) -> None:
        """Makes the engines ready to receive. Called again when they are not the same ones."""

    def send(
        self, tensors: Iterable[tuple[str, Tensor]], version: int, receivers: Receivers
    ) -> None:
        """Streams (name, tensor) to all of them in bounded memory; returns when all have loaded."""

    def close(self) -> None:
        """Leaves nothing behind; may be called again."""
