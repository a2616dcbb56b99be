"""The methods that studies know by name, as values of a run; docs/methods.md has the keys."""

from typing import Any

from alp_megatron.errors import UserError

Values = dict[str, Any]  # dotted key: value


def _mis(level: str) -> Values:
    return {"objective.method": "mis", "objective.correction.weight_level": level}


ALP: Values = {"objective.method": "alp"}

NAMED: dict[str, Values] = {
    "grpo": {"objective.method": "grpo"},
    "gspo": {"objective.method": "gspo"},
    "bypass": {"objective.method": "bypass"},
    "bypass-sequence": {"objective.method": "bypass", "objective.level": "sequence"},
    "tis": {"objective.method": "tis"},
    "tis-sequence": {"objective.method": "tis", "objective.correction.weight_level": "sequence"},
    "mis": _mis("token"),
    "mis-sequence": _mis("sequence"),
    "mis-geometric": _mis("geometric"),
    "icepop": {"objective.method": "icepop"},
    "alp": ALP,
    "alp-sequence": ALP | {"objective.level": "sequence"},
    "alp-fixed-sigma": ALP | {"perturbation.learnable": False},
    "alp-relative": ALP | {"perturbation.sigma_mode": "relative"},
    "alp-logits": ALP | {"perturbation.target": "logits", "perturbation.learnable": False},
}
# Noise on a part of the layers only: the part's number, of three.
THIRDS = {"alp-first-third": 0, "alp-middle-third": 1, "alp-last-third": 2}
NAMES = (*NAMED, *THIRDS)


def named_values(name: str, num_layers: int) -> Values:
    """Returns the values of a named method for a model of so many layers.

    Raises:
        UserError: the model has too few layers to take a third of them.
    """
    if name in NAMED:
        return dict(NAMED[name])
    if num_layers < 3:
        raise UserError(
            f"{name} needs a model of at least 3 layers, but this one has {num_layers}."
        )
    start, end = (round(num_layers * (THIRDS[name] + i) / 3) for i in (0, 1))
    return ALP | {"perturbation.layer_start": start, "perturbation.layer_end": end}
