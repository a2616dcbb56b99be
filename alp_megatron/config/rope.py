"""Rotary embeddings as config.json describes them, in the forms of transformers 4 and 5."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alp_megatron.errors import UserError

_DEFAULT_THETA = 10000.0  # transformers' own, for every family here


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the low frequencies; the names are config.json's."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float


@dataclass(frozen=True)
class Rope:
    """The base of the frequencies, and how they are scaled, if at all."""

    theta: float = _DEFAULT_THETA
    scaling: Llama3Scaling | None = None


def read_rope(hf: dict[str, Any], path: Path) -> Rope:
    """From config.json's content. Raises UserError naming `path` for what is not supported.

    transformers 5 keeps everything in `rope_parameters`; transformers 4 had `rope_theta` beside
    `rope_scaling`, whose kind older files call `type`. Where a file has both, it is the latter
    that transformers obeys.
    """
    given = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise UserError(f"{path}: rope_parameters is {given!r}; it must be an object.")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise UserError(
            f"{path}: rotary embeddings of type {kind!r} are not supported; remove rope_scaling "
            "if max_position_embeddings is enough without it."
        )
    if given.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"{path}: partial rotary embeddings are not supported; use another model.")
    theta = _positive(given.get("rope_theta", hf.get("rope_theta", _DEFAULT_THETA)), path, "theta")
    if kind == "default":
        return Rope(theta)
    names = Llama3Scaling.__dataclass_fields__
    scaling = Llama3Scaling(*(_positive(given.get(name), path, f"llama3 {name}") for name in names))
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise UserError(f"{path}: high_freq_factor must be more than low_freq_factor; correct it.")
    return Rope(theta, scaling)


def _positive(value: Any, path: Path, name: str) -> float:
    if type(value) not in (int, float) or not value > 0:
        raise UserError(f"{path}: rope's {name} is {value!r}; it must be a positive number.")
    return value
