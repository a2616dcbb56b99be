"""The table: one row a mismatch and method, with means over seeds and paired differences."""

from dataclasses import dataclass

from alp_megatron.comparison.bootstrap import Interval, mean_interval
from alp_megatron.comparison.outcomes import Outcome
from alp_megatron.comparison.trials import Trial

# Column of the table: the format of its numbers.
MEASURES = {
    "final_score": ".3f",
    "best_score": ".3f",
    "mean_score": ".3f",
    "k3_before": ".1e",
    "k3_clean": ".1e",
    "k3_perturbed": ".1e",
    "clipped_share": ".3f",
    "effective_fraction": ".3f",
    "sigma": ".2e",
    "minutes": ".1f",
}
REFERENCE = "bypass"


@dataclass(frozen=True)
class Row:
    """A method under one mismatch.

    Attributes:
        seeds: of the finished runs, in the comparison's order.
        measures: None where no run has the measure.
        collapsed: seeds of the runs that have collapsed.
        baseline: the best method without noise of the mismatch, by mean final score; None where
            this row is it, or there is none.
        to_baseline, to_reference: of final scores at the same seed, this method less the other;
            None where the row is the other, or no seed is common.
    """

    mismatch: str
    method: str
    seeds: list[int]
    measures: dict[str, Interval | None]
    collapsed: list[int]
    baseline: str | None
    to_baseline: Interval | None
    to_reference: Interval | None


def rows(finished: list[tuple[Trial, Outcome]]) -> list[Row]:
    """In the order of mismatches and methods of the comparison; methods without a run have none."""
    mismatches = dict.fromkeys(trial.mismatch for trial, _ in finished)
    found = []
    for mismatch in mismatches:
        here = [(t, o) for t, o in finished if t.mismatch == mismatch]
        found += _rows_of_mismatch(mismatch, here)
    return found


def _rows_of_mismatch(mismatch: str, finished: list[tuple[Trial, Outcome]]) -> list[Row]:
    outcomes: dict[str, dict[int, Outcome]] = {}
    for trial, outcome in finished:
        outcomes.setdefault(trial.method, {})[trial.seed] = outcome
    best = _best_baseline(finished, outcomes)
    return [
        Row(
            mismatch,
            method,
            list(by_seed),
            {name: _measure(name, by_seed) for name in MEASURES},
            [seed for seed, outcome in by_seed.items() if outcome.collapse],
            None if method == best else best,
            _difference(outcomes, method, best),
            _difference(outcomes, method, REFERENCE),
        )
        for method, by_seed in outcomes.items()
    ]


def _best_baseline(
    finished: list[tuple[Trial, Outcome]], outcomes: dict[str, dict[int, Outcome]]
) -> str | None:
    """Of the methods whose objective has no noise; the first of equals."""
    names = dict.fromkeys(trial.method for trial, _ in finished if not trial.noisy)
    means = {name: mean_interval(_finals(outcomes[name])).mean for name in names}
    return max(means, key=lambda name: means[name]) if means else None


def _finals(by_seed: dict[int, Outcome]) -> list[float]:
    return [outcome.final_score for outcome in by_seed.values()]


def _measure(name: str, by_seed: dict[int, Outcome]) -> Interval | None:
    values = [getattr(outcome, name) for outcome in by_seed.values()]
    values = [value for value in values if value is not None]
    return mean_interval(values) if values else None


def _difference(
    outcomes: dict[str, dict[int, Outcome]], method: str, other: str | None
) -> Interval | None:
    if other is None or other == method or other not in outcomes:
        return None
    pairs = [
        outcome.final_score - outcomes[other][seed].final_score
        for seed, outcome in outcomes[method].items()
        if seed in outcomes[other]
    ]
    return mean_interval(pairs) if pairs else None
