"""Refuses objectives whose settings contradict one another, or the method's own definition."""

from typing import Any

from alp_megatron.config.methods import METHODS
from alp_megatron.config.schema import CorrectionConfig, ObjectiveConfig, PerturbationConfig
from alp_megatron.errors import UserError

KEY = "objective.correction"


def check_objective(objective: ObjectiveConfig) -> None:
    """Raises UserError: one sentence naming the key and the mend."""
    for key, allowed in METHODS[objective.method].fixed.items():
        _check_fixed(objective, key, allowed)
    if objective.length_normalized and objective.level == "token":
        raise UserError(
            "objective.length_normalized=true has no meaning for objective.level=token: set "
            "objective.level=sequence or drop it."
        )
    _check_weight(objective.correction)
    _check_rejection(objective.correction)
    if objective.correction.denominator == "kept" and not objective.correction.rejects:
        raise UserError(
            f"{KEY}.denominator=kept has no meaning where nothing is rejected: drop it, or set "
            f"{KEY}.weight=masked, {KEY}.reject_by or {KEY}.veto."
        )


def check_noise_target(perturbation: PerturbationConfig) -> None:
    """Refuses noise on the logits that is not of one fixed scale, or speaks of layers.

    Raises UserError.
    """
    if perturbation.target == "layers":
        return
    wanted = {"learnable": False, "sigma_mode": "absolute", "layer_start": 0, "layer_end": None}
    for key, value in wanted.items():
        given = getattr(perturbation, key)
        if given != value:
            raise UserError(
                f"perturbation.{key}={_shown(given)} has no meaning for "
                f"perturbation.target=logits: set it to {_shown(value)}."
            )


def _check_fixed(objective: ObjectiveConfig, key: str, allowed: tuple) -> None:
    section, _, name = key.rpartition(".")
    value = getattr(objective.correction if section else objective, name)
    if value not in allowed:
        only = " or ".join(_shown(a) for a in allowed)
        raise UserError(
            f"objective.{key}={_shown(value)} contradicts objective.method={objective.method}, "
            f"which means {only} there: drop it or choose another method."
        )


def _check_weight(c: CorrectionConfig) -> None:
    used = {"none": (), "truncated": ("weight_high",)}.get(c.weight, ("weight_low", "weight_high"))
    for name in ("weight_low", "weight_high"):
        value = getattr(c, name)
        if value is not None and name not in used:
            raise UserError(
                f"{KEY}.{name}={value:g} has no meaning for {KEY}.weight={c.weight}: drop it or "
                f"set {KEY}.weight=masked."
            )
    if used and c.weight_high is None:
        raise UserError(
            f"{KEY}.weight={c.weight} needs {KEY}.weight_high: give one, for example 2."
        )
    _check_order("weight", c.weight_low, c.weight_high)


def _check_rejection(c: CorrectionConfig) -> None:
    bounds = {"reject_low": c.reject_low, "reject_high": c.reject_high}
    given = [name for name, value in bounds.items() if value is not None]
    if c.reject_by is None:
        if given:
            raise UserError(
                f"{KEY}.{given[0]}={bounds[given[0]]:g} has no meaning without {KEY}.reject_by: "
                "set that to k1, k2 or k3, or drop the bound."
            )
        return
    if not given:
        raise UserError(
            f"{KEY}.reject_by={c.reject_by} needs {KEY}.reject_high: give one, in nats."
        )
    if c.reject_by != "k1":  # never negative
        if c.reject_low is not None:
            raise UserError(
                f"{KEY}.reject_low={c.reject_low:g} rejects what agrees best, as "
                f"{c.reject_by} is 0 there: drop it and give {KEY}.reject_high."
            )
        if c.reject_high is not None and c.reject_high <= 0:
            raise UserError(
                f"{KEY}.reject_high={c.reject_high:g} rejects everything, as {c.reject_by} is "
                "never negative: give a bound above 0."
            )
    _check_order("reject", c.reject_low, c.reject_high)


def _check_order(name: str, low: float | None, high: float | None) -> None:
    if low is not None and high is not None and low >= high:
        raise UserError(
            f"{KEY}.{name}_low={low:g} is not below {KEY}.{name}_high={high:g}, so that nothing "
            "would be kept: swap or change them."
        )


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower()
