"""The methods: what each one compares the training policy with. Light: no torch import."""

from dataclasses import dataclass, field
from typing import Any, Literal

from alp_megatron.config.schema import ObjectiveConfig


@dataclass(frozen=True)
class Method:
    """One row of the registry.

    Attributes:
        denominator: whose log-probs the ratio is taken against: the rollout engine's, or
            those of the training engine with the rollout's weights.
        perturbed: the update's forward pass runs inside the perturbation scope.
        defaults: objective settings that replace the schema's defaults for this method.
    """

    denominator: Literal["rollout", "old"]
    perturbed: bool
    defaults: dict[str, Any] = field(default_factory=dict)


METHODS = {
    "alp": Method(denominator="rollout", perturbed=True),
    "bypass": Method(denominator="rollout", perturbed=False),
    "grpo": Method(
        denominator="old",
        perturbed=False,
        defaults={"eps_low": 0.2, "eps_high": 0.28, "dual_clip": 10.0},
    ),
}


def with_method_defaults(config: ObjectiveConfig) -> ObjectiveConfig:
    """The same configuration, with the method's defaults where the user gave no value.

    For the config loader, before the resolved configuration is written: once written, every
    key counts as given.
    """
    defaults = METHODS[config.method].defaults
    unset = {key: value for key, value in defaults.items() if key not in config.model_fields_set}
    return config.model_copy(update=unset)
