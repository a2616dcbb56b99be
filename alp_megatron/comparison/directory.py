"""compare_dir: what is there must be of this comparison, and of this version."""

import json
from pathlib import Path
from typing import Any

from alp_megatron.comparison.config import ComparisonConfig
from alp_megatron.comparison.trials import Trial
from alp_megatron.config.flat import flat
from alp_megatron.config.schema import Config, Fp8Config, ModelConfig
from alp_megatron.config.yaml_io import dump_yaml, read_mapping
from alp_megatron.diagnostics.files import write_atomic
from alp_megatron.errors import UserError

RECORD = "comparison.yaml"
_DEFINITIONS = ("collapse", "final_evaluations")


def check_runs(trials: list[Trial], table_only: bool) -> None:
    """Runs that have begun have the settings that this comparison gives them.

    A run goes on only with the version that began it. For a table it may be older: then a key that
    it does not know must have its default here, which is what the run did.

    Raises:
        UserError: naming the first directory where a key differs or is of another version.
    """
    defaults = _defaults() if table_only else {}
    for trial in trials:
        path = trial.run_dir / "config.yaml"
        if not path.is_file():
            continue
        wanted = flat(trial.config.model_dump())
        newer = {k: v for k, v in defaults.items() if k in wanted and wanted[k] == v}
        there = newer | flat(read_mapping(path))
        there["run_dir"] = wanted["run_dir"]  # a directory may have been moved
        strange = sorted(there.keys() ^ wanted.keys())
        if strange:
            where = "only there" if strange[0] in there else "missing there"
            raise UserError(
                f"{path} was written by another version of ALP-Megatron ({strange[0]} is {where}): "
                "choose another compare_dir."
            )
        changed = [key for key in wanted if there[key] != wanted[key]]
        if changed:
            key = changed[0]
            raise UserError(
                f"'{trial.member.name}': {path} has {key}={_shown(there[key])} where the "
                f"comparison has {_shown(wanted[key])}: restore it, or choose another compare_dir."
            )


def _defaults() -> dict[str, Any]:
    """Of every key, those of a section that is off by default too."""
    models = ModelConfig(path=""), ModelConfig(path="", fp8=Fp8Config())
    return {k: v for model in models for k, v in flat(Config(model=model).model_dump()).items()}


def check_definitions(comparison: ComparisonConfig) -> None:
    """What counts as a collapse and as the final score was written before the runs, and stays.

    Raises:
        UserError: naming the key that differs from COMPARE_DIR/comparison.yaml.
    """
    path = Path(comparison.compare_dir) / RECORD
    if not path.is_file():
        return
    there, wanted = flat(read_mapping(path)), flat(comparison.model_dump())
    for key, value in wanted.items():
        if key.split(".")[0] in _DEFINITIONS and there.get(key) != value:
            raise UserError(
                f"{key}={_shown(value)}, but {path} was written before the runs with "
                f"{_shown(there.get(key))}: restore it, or choose another compare_dir."
            )


def write_record(comparison: ComparisonConfig) -> None:
    """COMPARE_DIR/comparison.yaml; the directory is there."""
    path = Path(comparison.compare_dir) / RECORD
    write_atomic(path, dump_yaml(comparison.model_dump()).encode())


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)
