"""One part of the GPU proof: what it found, or why it was not run."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class Skip(Exception):
    """The part cannot run here; the message says why."""


@dataclass(frozen=True)
class Goal:
    """A figure that must be at most or at least something."""

    name: str
    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool:
        """False for NaN."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return self.at_least is not None and self.value >= self.at_least

    def __str__(self) -> str:
        sign, limit = ("<=", self.at_most) if self.at_least is None else (">=", self.at_least)
        verdict = "met" if self.met else "MISSED"
        return f"{self.name} {self.value:.4g} {sign} {limit:.4g} {verdict}"


@dataclass
class Found:
    """What a part measured: `figures` with units in their names, `goals` among them, and a `note`
    of what must be known to read them."""

    figures: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    note: str = ""


Part = Callable[[], Found]


def need(*packages: str) -> None:
    """Raises Skip naming the first package that is not installed. Imports none of them."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise Skip(f"{package} is not installed")
