"""What one finished run reached, from its metrics.jsonl."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alp_megatron.comparison.collapse import collapse_reason
from alp_megatron.comparison.config import ComparisonConfig
from alp_megatron.comparison.trials import Trial
from alp_megatron.diagnostics.figures import scores
from alp_megatron.diagnostics.keys import clipped_share
from alp_megatron.diagnostics.metrics_file import has_metrics, read_metrics


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
    """None for a run that has not made its last step. UserError for a damaged file."""
    records = read_records(trial)
    if not records or records[-1]["step"] + 1 < trial.config.trainer.steps:
        return None
    return outcome(records, comparison)


def read_records(trial: Trial) -> list[dict]:
    there = has_metrics(trial.run_dir)
    return read_metrics(trial.run_dir / "metrics.jsonl") if there else []


def outcome(records: Sequence[dict], comparison: ComparisonConfig) -> Outcome:
    """The measures of a finished run's records."""
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
        k3_before=_median(records, "mismatch/k3"),
        k3_clean=_median(records, "mismatch_clean/k3"),
        k3_perturbed=_median(records, "mismatch_perturbed/k3"),
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
