"""What each run reached, and the rows of a comparison's table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alp_megatron.metrics.intervals import Interval, mean_interval
from alp_megatron.metrics.keys import clipped_share
from alp_megatron.metrics.recorder import has_metrics, read_metrics
from alp_megatron.report.canvas import scores
from alp_megatron.studies.compare.config import ComparisonConfig, collapse_reason
from alp_megatron.studies.compare.trials import Trial


@dataclass(frozen=True)
class Outcome:
    """Measures of one run.

    Attributes:
        final_score: mean of the last evaluations, as many as the comparison says, without the
            base model's.
        best_score: of all evaluations.
        mean_score: area under the score curve divided by its steps; trapezoids, base included.
        collapse: the reason, or None.
        k3_before, k3_clean, k3_perturbed: to the rollout engine, nats per token: of the policy
            before a step's updates; during them without the noise, and as it was. Medians over
            the steps that measured it; None if none did.
        clipped_share: mean over the steps, of tokens.
        effective_fraction: mean over the steps, None without noise.
        sigma: mean over the layers after the last step, None without noise.
        minutes: in the steps; evaluations and the start are not in it.
    """

    final_score: float
    best_score: float
    mean_score: float
    collapse: str | None
    k3_before: float | None
    k3_clean: float | None
    k3_perturbed: float | None
    clipped_share: float
    effective_fraction: float | None
    sigma: float | None
    minutes: float


def read_outcome(trial: Trial, comparison: ComparisonConfig) -> Outcome | None:
    """Returns None for a run that has not finished. Raises UserError for a damaged file."""
    records = read_records(trial)
    if not records or records[-1]["step"] + 1 < trial.config.trainer.steps:
        return None
    return outcome(records, comparison)


def read_records(trial: Trial) -> list[dict]:
    there = has_metrics(trial.run_dir)
    return read_metrics(trial.run_dir / "metrics.jsonl") if there else []


def outcome(records: Sequence[dict], comparison: ComparisonConfig) -> Outcome:
    """Returns the measures of a finished run's records."""
    steps, values = scores(records)
    trained = values[1:] if steps[0] == 0 else values
    span = float(steps[-1] - steps[0])
    noisy = records[-1]["alp/sigma_max"] > 0
    skipped = sum(int(record.get("updates/skipped", 0)) for record in records)
    return Outcome(
        final_score=float(np.mean(trained[-comparison.final_evaluations :])),
        best_score=float(values.max()),
        mean_score=float(np.trapezoid(values, steps) / span if span else values[0]),
        collapse=collapse_reason(comparison.collapse, values.tolist(), skipped),
        k3_before=_median(records, "mismatch_before/k3"),
        k3_clean=_median(records, "mismatch_during_clean/k3"),
        k3_perturbed=_median(records, "mismatch_during_perturbed/k3"),
        clipped_share=float(np.mean([clipped_share(r) for r in records])),
        effective_fraction=_mean(records, "alp/effective_fraction") if noisy else None,
        sigma=records[-1]["alp/sigma_mean"] if noisy else None,
        minutes=sum(record["time/total"] for record in records) / 60,
    )


def _median(records: Sequence[dict], key: str) -> float | None:
    values = [record[key] for record in records if key in record]
    return float(np.median(values)) if values else None


def _mean(records: Sequence[dict], key: str) -> float:
    return float(np.mean([record[key] for record in records]))


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
    """Returns rows in the comparison's order; methods without a finished run have none."""
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
    """Returns the best method whose objective has no noise; the first of equals."""
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
