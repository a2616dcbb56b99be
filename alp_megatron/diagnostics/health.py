"""Healthy ranges of a few metrics, and what to try outside them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Record = Mapping[str, float]


@dataclass(frozen=True)
class Check:
    """One range: `unhealthy` says whether a value is outside it, `limit` describes it."""

    name: str
    value: Callable[[Record], float]
    unhealthy: Callable[[float], bool]
    limit: str
    advice: str


CHECKS = (
    Check(
        "mismatch/k3",
        lambda r: r["mismatch/k3"],
        lambda value: value > 0.1,
        "at most 0.1",
        "the rollout engine has drifted from the trainer; try fewer updates per rollout batch, "
        "a lower learning rate or a higher rollout precision",
    ),
    Check(
        "mismatch/ess",
        lambda r: r["mismatch/ess"],
        lambda value: value < 0.5,
        "at least 0.5",
        "few tokens carry most of the importance weight; try fewer updates per rollout batch",
    ),
    Check(
        "alp/effective_fraction",
        # Without noise there is nothing that rounding could lose.
        lambda r: r["alp/effective_fraction"] if r["alp/sigma_max"] > 0 else 1.0,
        lambda value: value < 0.5,
        "at least 0.5",
        "rounding loses the noise; try a larger perturbation.sigma0 or "
        "model.fp32_residual_connection=true",
    ),
    Check(
        "clipped share",
        lambda r: r["ratio/clip_low"] + r["ratio/clip_high"] + r["ratio/dual_clip"],
        lambda value: value > 0.3,
        "at most 0.3",
        "much of the batch gives no gradient; try a lower learning rate or fewer updates per "
        "rollout batch",
    ),
    Check(
        "reward/std",
        lambda r: r["reward/std"],
        lambda value: value <= 0,
        "above 0",
        "equal rewards carry no signal; try easier or harder prompts, or check the reward",
    ),
)


def warnings(record: Record) -> dict[str, str]:
    """{name of the check: one sentence} for what is outside its range in this record.

    A check whose metrics the record lacks is left out.
    """
    found = {}
    for check in CHECKS:
        try:
            value = check.value(record)
        except KeyError:
            continue
        if check.unhealthy(value):
            found[check.name] = (
                f"Step {record['step']:.0f}: {check.name} is {value:.3g}, healthy is "
                f"{check.limit}: {check.advice}."
            )
    return found


def new_warnings(record: Record, seen: set[str]) -> list[str]:
    """The warnings of kinds not yet in `seen`, which this updates: each kind is told once."""
    found = {name: text for name, text in warnings(record).items() if name not in seen}
    seen.update(found)
    return list(found.values())
