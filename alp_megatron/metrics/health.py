"""Healthy ranges of metrics, and what to try outside them; docs/diagnostics.md explains them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from alp_megatron.metrics.keys import clipped_share

Record = Mapping[str, float]


@dataclass(frozen=True)
class Check:
    """One range: `unhealthy` says whether a value is outside it, `limit` describes it.

    `value` is of a record and of the run's first one, for what only a change can tell.
    """

    name: str
    value: Callable[[Record, Record], float]
    unhealthy: Callable[[float], bool]
    limit: str
    advice: str


def _metric(key: str) -> Callable[[Record, Record], float]:
    return lambda record, first: record[key]


def _growth(key: str) -> Callable[[Record, Record], float]:
    """Makes a multiple of the first step's value; 1 where that is 0."""
    return lambda record, first: record[key] / first[key] if first[key] > 0 else 1.0


CHECKS = (
    Check(
        "mismatch_before/k3",
        _metric("mismatch_before/k3"),
        lambda value: value > 0.1,
        "at most 0.1",
        "the rollout engine has drifted from the trainer; try fewer updates per rollout batch, "
        "a lower learning rate or a higher rollout precision",
    ),
    Check(
        "mismatch_during_perturbed/k3",
        _metric("mismatch_during_perturbed/k3"),
        lambda value: value > 0.1,
        "at most 0.1",
        "the ratio's numerator is far from the policy that sampled; try a smaller "
        "perturbation.sigma0 (alp) or fewer updates per rollout batch",
    ),
    Check(
        "mismatch_before/ess",
        _metric("mismatch_before/ess"),
        lambda value: value < 0.5,
        "at least 0.5",
        "few tokens carry most of the importance weight; try fewer updates per rollout batch",
    ),
    Check(
        "ratio/p98",
        _metric("ratio/p98"),
        lambda value: value > 2,
        "at most 2",
        "the trainer has raised many tokens far above the rollout policy; try fewer updates per "
        "rollout batch, a lower trainer.lr or, with alp, a smaller perturbation.sigma0",
    ),
    Check(
        "ratio/p02",
        _metric("ratio/p02"),
        lambda value: value < 0.5,
        "at least 0.5",
        "the trainer has lowered many tokens far below the rollout policy; try fewer updates per "
        "rollout batch, a lower trainer.lr or, with alp, a smaller perturbation.sigma0",
    ),
    Check(
        "alp/fp8_surviving_fraction",
        _metric("alp/fp8_surviving_fraction"),
        lambda value: value < 0.01,
        "at least 0.01",
        "FP8 rounding loses the noise; try a larger perturbation.sigma0",
    ),
    Check(
        "clipped share",
        lambda r, first: clipped_share(r),
        lambda value: value > 0.3,
        "at most 0.3",
        "much of the batch gives no gradient; try a lower learning rate or fewer updates per "
        "rollout batch",
    ),
    Check(
        "correction/rejected_tokens",
        _metric("correction/rejected_tokens"),
        lambda value: value > 0.3,
        "at most 0.3",
        "the correction throws much of the batch away; try wider bounds in objective.correction, "
        "weight_level=token or geometric, or a higher rollout precision",
    ),
    Check(
        "alp/effective_fraction",
        # Without noise there is nothing that rounding could lose.
        lambda r, first: r["alp/effective_fraction"] if r["alp/sigma_max"] > 0 else 1.0,
        lambda value: value < 0.5,
        "at least 0.5",
        "rounding loses the noise; try a larger perturbation.sigma0 or "
        "model.fp32_residual_connection=true",
    ),
    Check(
        "growth of alp/sigma_max",
        _growth("alp/sigma_max"),
        lambda value: value > 10,
        "at most 10 times the first step's",
        "the noise may drown the hidden states; try a lower perturbation.perturb_lr or "
        "perturbation.learnable=false",
    ),
    Check(
        "growth of grad_norm",
        _growth("grad_norm"),
        lambda value: value > 10,
        "at most 10 times the first step's",
        "updates are about to be ruled by a few tokens; try a lower trainer.lr, a smaller "
        "trainer.clip_grad or tighter clip bounds",
    ),
    Check(
        "updates/skipped",
        _metric("updates/skipped"),
        lambda value: value > 0,
        "0",
        "a gradient was not finite; try a lower trainer.lr, or model.params_dtype=float32",
    ),
    Check(
        "share of the first entropy",
        _growth("entropy"),
        lambda value: value < 0.1,
        "at least 0.1",
        "the policy hardly explores any more; try a lower trainer.lr, a larger "
        "objective.eps_high or harder prompts",
    ),
    Check(
        "reward/std",
        _metric("reward/std"),
        lambda value: value <= 0,
        "above 0",
        "equal rewards carry no signal; try easier or harder prompts, or check the reward",
    ),
    Check(
        "policy_version/lag_max",
        _metric("policy_version/lag_max"),
        lambda value: value > 4,
        "at most 4",
        "samples come from much older weights; try a smaller rollout.sync_interval",
    ),
)


def warnings(record: Record, first: Record) -> dict[str, str]:
    """Returns {name of the check: one sentence} for what is outside its range in this record.

    A check whose metrics the records lack is left out. Steps are counted from 1, as in the
    console. `first` is the run's first record.
    """
    found = {}
    for check in CHECKS:
        try:
            value = check.value(record, first)
        except KeyError:
            continue
        if check.unhealthy(value):
            found[check.name] = (
                f"Step {record['step'] + 1:.0f}: {check.name} is {value:.3g}, healthy is "
                f"{check.limit}: {check.advice}."
            )
    return found


class Watch:
    """Tells each kind of warning once. `first` is the first record of a run that is resumed."""

    def __init__(self, first: Record | None = None):
        self._first = first
        self._seen: set[str] = set()

    def new_warnings(self, record: Record) -> list[str]:
        self._first = self._first or record
        found = warnings(record, self._first)
        new = [text for name, text in found.items() if name not in self._seen]
        self._seen.update(found)
        return new
