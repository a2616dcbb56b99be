"""Describes the methods as data: what each compares the training policy with, and corrects.

Light: no torch import. docs/methods.md has the formulae in one table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from alp_megatron.config.schema import ObjectiveConfig, Section

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """Is one row of the registry.

    Attributes:
        reference: whose log-probs the ratio is taken against: the rollout engine's, or
            those of the training engine with the rollout's weights.
        perturbed: the update's forward pass has noise.
        defaults: objective settings that replace the schema's defaults for this method.
        correction: the same for objective.correction.
        fixed: dotted settings below `objective` that define the method, with the values they
            may have.
    """

    reference: Literal["rollout", "old"]
    perturbed: bool = False
    defaults: Settings = field(default_factory=dict)
    correction: Settings = field(default_factory=dict)
    fixed: Mapping[str, tuple] = field(default_factory=dict)


PPO_CLIP = {"eps_low": 0.2, "eps_high": 0.28, "dual_clip": 10.0}
# The ratio to the rollout engine already holds pi_old / pi_rollout: a weight would count it twice.
NO_WEIGHT = {"correction.weight": ("none",)}

METHODS = {
    # Noise on the layers' inputs, one ratio straight to the rollout policy.
    "alp": Method(reference="rollout", perturbed=True, fixed=NO_WEIGHT),
    # The same ratio without noise.
    "bypass": Method(reference="rollout", fixed=NO_WEIGHT),
    # PPO's ratio to the trainer's own old policy. Shao et al. 2024 (DeepSeekMath); the asymmetric
    # clip is that of Yu et al. 2025 (DAPO).
    "grpo": Method(reference="old", defaults=PPO_CLIP),
    # s = exp(mean_t log pi/pi_old), clipped as a whole. The ratio's gradient is s grad logp_t,
    # so its mean over the tokens of a sequence is grad s. Zheng et al. 2025 (GSPO).
    "gspo": Method(
        reference="old",
        defaults={
            "level": "sequence",
            "length_normalized": True,
            "eps_low": 3e-4,
            "eps_high": 4e-4,
            "dual_clip": None,
            "loss_normalization": "sequence",
        },
        fixed={"level": ("sequence",), "length_normalized": (True,)},
    ),
    # grpo times min(w, C). Yao et al. 2025; Ionides 2008.
    "tis": Method(
        reference="old",
        defaults=PPO_CLIP,
        correction={"weight": "truncated", "weight_high": 2.0},
        fixed={"correction.weight": ("truncated",)},
    ),
    # grpo times w where lo <= w <= hi, else 0; or times 1 there. Liu et al. 2025.
    "mis": Method(
        reference="old",
        defaults=PPO_CLIP,
        correction={
            "weight": "masked",
            "weight_level": "sequence",
            "weight_low": 0.0,
            "weight_high": 5.0,
        },
        fixed={"correction.weight": ("masked", "window")},
    ),
    # mis at the token level with its authors' bounds. Ling team 2025, "Every step evolves".
    "icepop": Method(
        reference="old",
        defaults=PPO_CLIP,
        correction={
            "weight": "masked",
            "weight_level": "token",
            "weight_low": 0.5,
            "weight_high": 5.0,
        },
        fixed={"correction.weight": ("masked",), "correction.weight_level": ("token",)},
    ),
}


def with_method_defaults(config: ObjectiveConfig) -> ObjectiveConfig:
    """Returns the configuration with the method's defaults where the user gave no value.

    For the config loader, before the resolved configuration is written: once written, every
    key counts as given.
    """
    method = METHODS[config.method]
    correction = config.correction.model_copy(update=_unset(config.correction, method.correction))
    own = _unset(config, method.defaults)
    return config.model_copy(update=own | {"correction": correction})


def needs_old_logprobs(config: ObjectiveConfig) -> bool:
    """Returns whether the loss needs the training engine's log-probs at the rollout's weights.

    They cost a forward pass over the step's samples. A ratio to the old policy needs them,
    and so does whatever looks at w = pi_old / pi_rollout.
    """
    return METHODS[config.method].reference == "old" or config.correction.is_on


def _unset(section: Section, defaults: Settings) -> dict[str, Any]:
    return {key: value for key, value in defaults.items() if key not in section.model_fields_set}
