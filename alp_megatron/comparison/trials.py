"""The runs of a comparison: method x mismatch x seed, each with its number and configuration."""

from dataclasses import dataclass
from pathlib import Path

from alp_megatron.comparison.config import ComparisonConfig
from alp_megatron.comparison.methods import NAMES, Values, named_values
from alp_megatron.config.load import load_config
from alp_megatron.config.model_shape import read_model_shape
from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.objectives.methods import METHODS
from launch.manifest import Member, extended, read_manifest
from launch.run_config import run_config
from launch.sweep_config import SweepConfig, expand, overrides


@dataclass(frozen=True)
class Trial:
    """One run. The member's values are the names: mismatch, method and seed."""

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
        """Its numerator is perturbed."""
        return METHODS[self.config.objective.method].perturbed

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir)


def plan(comparison: ComparisonConfig, of_runs: list[str]) -> list[Trial]:
    """Every run, checked as `alp-megatron train` would; all of one seed before the next seed.

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
    """Each method's values: those that its name stands for, and its own."""
    base = load_config(comparison.base, [*overrides(comparison.set), *of_runs])
    layers = read_model_shape(base.model.path).num_hidden_layers
    return {
        name: (named_values(name, layers) if name in NAMES else {}) | values
        for name, values in comparison.methods.items()
    }


def _check_disjoint(member: Member, mismatch: Values, method: Values) -> None:
    """Runs of one mismatch must share it, whatever their method is."""
    both = sorted(mismatch.keys() & method.keys())
    if both:
        raise UserError(
            f"'{member.name}': method and mismatch both set {both[0]}; drop it from one of them."
        )
