"""The tables and sentences of a report, of one run or of several, as plain text."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from alp_megatron.config.load import flat
from alp_megatron.config.schema import Config
from alp_megatron.metrics.health import warnings
from alp_megatron.metrics.keys import MISMATCH
from alp_megatron.report.canvas import scores
from alp_megatron.report.run_record import RunRecord

# Prefix of the metrics: what they compare with the rollout policy, and when.
NUMERATORS = {
    "mismatch_before": "clean policy, before a step's updates",
    "mismatch_during_clean": "clean policy, during the updates",
    "mismatch_during_perturbed": "perturbed policy, during the updates",
}
UNITS = {
    "k1": "nats/token",
    "k3": "nats/token",
    "abs_diff_mean": "nats",
    "abs_diff_max": "nats",
}
NEAR_ONE = ("prob_pearson", "token_mult_prob_error", "ess")


def summary(run: RunRecord) -> dict[str, str]:
    """Says what became of the run, in a few words each."""
    last = run.records[-1]
    rows = {"Steps": f"{last['step'] + 1}"}
    if run.config:
        rows["Method"] = _method(run.config)
        rows["Rollout engine"] = _rollout_engine(run.config)
    steps, values = scores(run.records)
    if len(values):
        rows["First score"] = f"{values[0]:.3f} (step {steps[0]})"
        rows["Final score"] = f"{values[-1]:.3f} (step {steps[-1]})"
        rows["Gain"] = f"{values[-1] - values[0]:+.3f}"
    last_values = {
        "reward/mean": ("Last training reward", "{:.3f}"),
        "mismatch_before/k3": ("Last k3, clean", "{:.2e} nats/token"),
        "mismatch_during_perturbed/k3": ("Last k3, perturbed", "{:.2e} nats/token"),
        "alp/sigma_mean": ("Last sigma, mean", "{:.3g}"),
    }
    for key, (label, form) in last_values.items():
        if key in last:
            rows[label] = form.format(last[key])
    seconds = sum(record["time/total"] for record in run.records)
    kinds = len(unhealthy(run.records))
    return rows | {
        "Time in steps": f"{seconds / 60:.1f} min",
        "Kinds of warnings": str(kinds or "none"),
    }


def _method(config: Config) -> str:
    return f"{config.objective.method}, ratio of the {config.objective.level}"


def _rollout_engine(config: Config) -> str:
    """Says what the mismatch is to: the engine's dtype, and its quantisation."""
    rollout = config.rollout
    if rollout.quantization == "none":
        return f"{rollout.dtype}, not quantised"
    ignored = ", ".join(rollout.quantization_ignore)
    text = f"{rollout.dtype}, linear layers quantised to {rollout.quantization}"
    return text + (f", except {ignored}" if ignored else "")


def older(run: RunRecord) -> list[str]:
    """Returns a sentence if the run's configuration is of an older version."""
    if not run.defaulted:
        return []
    return [
        f"config.yaml, of an older version, has no {', '.join(run.defaulted)}: shown with the "
        "defaults of this one."
    ]


def unhealthy(records: Sequence[dict]) -> list[str]:
    """Returns a sentence for each kind of unhealthy value, at its last occurrence, with a count."""
    last: dict[str, str] = {}
    count: dict[str, int] = {}
    for record in records:
        for name, text in warnings(record, records[0]).items():
            last[name] = text
            count[name] = count.get(name, 0) + 1
    return [f"{text} ({count[name]} of {len(records)} steps.)" for name, text in last.items()]


def mismatch_cell(records: Sequence[dict], prefix: str, metric: str) -> str:
    """Returns "last / median over the steps" of `prefix/metric`; a dash if it was not recorded."""
    found = [r[f"{prefix}/{metric}"] for r in records if f"{prefix}/{metric}" in r]
    form = "{:.5g}" if metric in NEAR_ONE else "{:.3g}"
    return f"{form.format(found[-1])} / {form.format(median(found))}" if found else "-"


def mismatch_tables(runs: Mapping[str, RunRecord]) -> dict[str, dict[str, list[str]]]:
    """Returns {prefix of NUMERATORS: {metric: a cell for each run}}, less what no run recorded."""
    tables: dict[str, dict[str, list[str]]] = {}
    for prefix in NUMERATORS:
        for metric in MISMATCH:
            cells = [mismatch_cell(run.records, prefix, metric) for run in runs.values()]
            if any(cell != "-" for cell in cells):
                name = f"{metric} ({UNITS[metric]})" if metric in UNITS else metric
                tables.setdefault(prefix, {})[name] = cells
    return tables


def config_differences(runs: Mapping[str, RunRecord]) -> dict[str, list[str]]:
    """Returns {key: its value in each run} of the keys that differ, but for run_dir."""
    trees = [flat(run.config.model_dump()) if run.config else {} for run in runs.values()]
    keys = dict.fromkeys(key for tree in trees for key in tree if key != "run_dir")
    rows = {key: [shown(tree[key]) if key in tree else "?" for tree in trees] for key in keys}
    return {key: cells for key, cells in rows.items() if len(set(cells)) > 1}


def shown(value: Any) -> str:
    """Returns a value of a configuration or an environment as a reader wants it."""
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
