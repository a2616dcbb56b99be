"""The runs of a comparison: which they are, what is there of them already, and their start."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alp_megatron.config.load import flat, load_config
from alp_megatron.config.methods import METHODS
from alp_megatron.config.schema import Config, Fp8Config, ModelConfig
from alp_megatron.config.yaml_io import dump_yaml, read_mapping
from alp_megatron.errors import UserError
from alp_megatron.files import write_atomic
from alp_megatron.hf.shape import read_model_shape
from alp_megatron.launch.local import run_members, runs_at_once
from alp_megatron.launch.members import (
    Member,
    SweepConfig,
    expand,
    extended,
    overrides,
    read_manifest,
    write_manifest,
)
from alp_megatron.launch.run_config import run_config, write_run_config
from alp_megatron.launch.status import read_status
from alp_megatron.studies.compare.config import ComparisonConfig
from alp_megatron.studies.methods import NAMES, Values, named_values


@dataclass(frozen=True)
class Trial:
    """One run; the member's values are the names: mismatch, method and seed."""

    member: Member
    config: Config

    @property
    def mismatch(self) -> str:
        return self.member.values["mismatch"]

    @property
    def method(self) -> str:
        return self.member.values["method"]

    @property
    def seed(self) -> int:
        return self.member.values["seed"]

    @property
    def noisy(self) -> bool:
        """Says whether its numerator is perturbed."""
        return METHODS[self.config.objective.method].perturbed

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir)


def trials_of(comparison: ComparisonConfig, of_runs: list[str]) -> list[Trial]:
    """Returns every run, checked as `alp-megatron train` would; all of a seed before the next.

    What a method sets wins over what a mismatch sets, that over `of_runs` (the command line's),
    those over the file's `set`. A run keeps the number that the directory's manifest gave it.

    Raises:
        UserError: naming the run, for what cannot run; or two runs would be the same.
    """
    root = Path(comparison.compare_dir)
    grid = {"mismatch": list(comparison.mismatches), "method": list(comparison.methods)}
    every = SweepConfig(
        sweep_dir=str(root), base=comparison.base, grid=grid, seeds=comparison.seeds
    )
    labels = sorted(expand(every), key=lambda values: comparison.seeds.index(values["seed"]))
    methods = _method_values(comparison, of_runs)
    trials = []
    for member in extended(read_manifest(root), labels):
        mismatch = comparison.mismatches[member.values["mismatch"]]
        method = methods[member.values["method"]]
        _check_disjoint(member, mismatch, method)
        own = mismatch | method | {"seed": member.values["seed"]}
        words = [*overrides(comparison.set), *of_runs, *overrides(own)]
        words += overrides({"run_dir": str(member.run_dir(root))})
        try:
            config = run_config(comparison.base, words, None)
        except UserError as error:
            raise UserError(f"'{member.name}': {error}") from error
        trials.append(Trial(member, config))
    return trials


def _method_values(comparison: ComparisonConfig, of_runs: list[str]) -> dict[str, Values]:
    """Returns each method's values: those that its name stands for, and its own."""
    base = load_config(comparison.base, [*overrides(comparison.set), *of_runs])
    layers = read_model_shape(base.model.path).num_hidden_layers
    return {
        name: (named_values(name, layers) if name in NAMES else {}) | values
        for name, values in comparison.methods.items()
    }


def _check_disjoint(member: Member, mismatch: Values, method: Values) -> None:
    """Refuses a method that changes the mismatch, which all methods must share."""
    both = sorted(mismatch.keys() & method.keys())
    if both:
        raise UserError(
            f"'{member.name}': method and mismatch both set {both[0]}; drop it from one of them."
        )


RECORD = "comparison.yaml"
_DEFINITIONS = ("collapse", "final_evaluations")


def check_runs(trials: list[Trial], table_only: bool) -> None:
    """Refuses runs that have begun with other settings than this comparison gives them.

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
    """Returns the default of every key, those of a section that is off by default too."""
    models = ModelConfig(path=""), ModelConfig(path="", fp8=Fp8Config())
    return {k: v for model in models for k, v in flat(Config(model=model).model_dump()).items()}


def check_definitions(comparison: ComparisonConfig) -> None:
    """Refuses another collapse and another final score than was written before the runs.

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
    """Writes COMPARE_DIR/comparison.yaml; the directory is there."""
    path = Path(comparison.compare_dir) / RECORD
    write_atomic(path, dump_yaml(comparison.model_dump()).encode())


def due(trials: list[Trial]) -> list[Trial]:
    """Returns those that have not finished."""
    return [trial for trial in trials if read_status(trial.run_dir, {})["state"] != "finished"]


def parallel_runs(trials: list[Trial], given: int | None) -> int:
    """Returns how many of them run at once: `given`, or as many as the cores hold."""
    return given or runs_at_once(trial.config for trial in trials)


def run_due(comparison: ComparisonConfig, trials: list[Trial], parallel: int | None) -> None:
    """Runs, or resumes, what has not finished. Raises RunError where some failed."""
    root = Path(comparison.compare_dir)
    waiting = due(trials)
    write_manifest(root, read_manifest(root), [trial.member for trial in trials])
    write_record(comparison)
    for trial in waiting:
        begun = (trial.run_dir / "config.yaml").is_file()
        write_run_config(trial.config, resume=begun)
    print(f"{root}: {len(trials)} runs, {len(trials) - len(waiting)} finished", end="")
    if not waiting:
        print()
        return
    at_once = parallel_runs(waiting, parallel)
    print(f", {len(waiting)} to run, {at_once} at once", flush=True)
    run_members(root, [trial.member for trial in waiting], at_once)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)
