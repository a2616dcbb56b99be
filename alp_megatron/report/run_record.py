"""What a run directory tells, read and checked: metrics, configuration, envelope."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alp_megatron.config.load import config_from, flat
from alp_megatron.config.schema import Config
from alp_megatron.config.yaml_io import read_mapping
from alp_megatron.errors import UserError
from alp_megatron.launch.members import MANIFEST, read_manifest
from alp_megatron.metrics.keys import CLIP, RATIO
from alp_megatron.metrics.recorder import read_metrics
from alp_megatron.metrics.tokens import TokenRatios

# Without these no report can be made; the others are shown where they are recorded.
NEEDED = (
    "reward/mean",
    "grad_norm",
    "entropy",
    *(f"ratio/{name}" for name in RATIO + CLIP),
    "mismatch_during_perturbed/k3",
    "alp/sigma_mean",
    "time/total",
)


@dataclass(frozen=True)
class RunRecord:
    """A run as a report sees it.

    Attributes:
        name: the directory's; of a sweep's member what the manifest calls it.
        records: of metrics.jsonl, at least one.
        config: None where config.yaml is not there.
        defaulted: keys that config.yaml, of an older version, does not know: `config` has their
            defaults, which are what that version did.
        environment: empty where environment.json is not there.
        ratios: of the last step that wrote envelopes/, and that step; None where there is none.
    """

    path: Path
    name: str
    records: list[dict]
    config: Config | None
    defaulted: list[str]
    environment: dict[str, Any]
    ratios: tuple[int, TokenRatios] | None


def read_run(run_dir: Path) -> RunRecord:
    """Raises UserError, naming the file, for what is missing, damaged or of another version."""
    metrics = run_dir / "metrics.jsonl"
    records = read_metrics(metrics)
    if not records:
        raise UserError(f"{metrics} has no finished step yet; wait for the first one.")
    for number, record in enumerate(records, start=1):
        for key in NEEDED:
            if key not in record:
                raise UserError(
                    f"{metrics} line {number} has no {key}: another version of ALP-Megatron wrote "
                    "it: report the run with that version."
                )
    return RunRecord(
        run_dir,
        _name(run_dir.resolve()),
        records,
        *_read_config(run_dir / "config.yaml"),
        _read_environment(run_dir / "environment.json"),
        _read_ratios(run_dir / "envelopes", last_step=records[-1]["step"]),
    )


def read_runs(run_dirs: Sequence[Path]) -> list[RunRecord]:
    """Reads the runs in their order. Names that are the same get the directories above in front.

    Raises:
        UserError: as read_run, or a run is given twice.
    """
    resolved = [path.resolve() for path in run_dirs]
    for path, given in zip(resolved, run_dirs, strict=True):
        if resolved.count(path) > 1:
            raise UserError(f"{given} is given twice: name each run once.")
    return [read_run(path) for path in run_dirs]


def labels(runs: Sequence[RunRecord]) -> list[str]:
    """Returns a name for each run that no other one has, without the `key=value` that all have."""
    words = [run.name.split(" ") for run in runs]
    common = {word for word in set.intersection(*map(set, words)) if "=" in word}
    for names in (
        [" ".join(word for word in of if word not in common) for of in words],
        [run.name for run in runs],
    ):
        if len(set(names)) == len(names) and all(names):
            return names
    return ["/".join((*run.path.resolve().parts[-3:-1], run.name)) for run in runs]


def _name(run_dir: Path) -> str:
    if (run_dir.parent / MANIFEST).is_file():
        for member in read_manifest(run_dir.parent):
            if member.run_dir(run_dir.parent) == run_dir:
                return member.name
    return run_dir.name


def _read_config(path: Path) -> tuple[Config | None, list[str]]:
    """Returns the configuration, and the keys that it lacks.

    A run writes every key that its version has: a missing one tells of an older version.
    """
    if not path.is_file():
        return None, []
    tree = read_mapping(path)
    given = flat(tree)
    try:
        config = config_from(tree)
    except UserError as error:
        raise UserError(
            f"{path}: {str(error).partition(': ')[0]}; another version of ALP-Megatron wrote it: "
            "report the run with that version."
        ) from error
    return config, [key for key in flat(config.model_dump()) if key not in given]


def _read_environment(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); delete it or restore it.") from error


def _read_ratios(directory: Path, last_step: int) -> tuple[int, TokenRatios] | None:
    """Reads the latest up to `last_step`: a killed run can have left one of a step that it lost."""
    steps = {int(path.stem[5:]): path for path in directory.glob(f"step_{'[0-9]' * 6}.npz")}
    step = max((step for step in steps if step <= last_step), default=None)
    if step is None:
        return None
    ratios = TokenRatios.load(steps[step])
    return (step, ratios) if ratios.update.size else None  # every update can have been skipped
