"""How methods look in figures: told apart by colour and by dashes, for who does not see colours."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# Okabe and Ito's, without yellow, which is hard to see on white.
COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3)))


@dataclass(frozen=True)
class Style:
    name: str
    color: str
    dashes: Any


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """No two of the first 35 methods look the same, nor share dashes with a neighbour."""
    names = list(dict.fromkeys(methods))
    return {
        name: Style(name, COLORS[i % len(COLORS)], DASHES[i % len(DASHES)])
        for i, name in enumerate(names)
    }
