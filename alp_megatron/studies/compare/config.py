"""A comparison's YAML file, and when a run of it counts as collapsed."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from alp_megatron.config.load import load_section
from alp_megatron.config.schema import Section
from alp_megatron.errors import UserError
from alp_megatron.studies.methods import NAMES, Values

_NAME = re.compile(r"[\w.+-]+")
AS_CONFIGURED = "as-configured"  # the one mismatch of a comparison that names none


class CollapseConfig(Section):
    """When a run counts as collapsed, in units of the score."""

    drop: float = Field(0.2, gt=0, description="of the last evaluation below the run's best one")
    below_base: float = Field(0.1, ge=0, description="of the last evaluation below the base score")
    skipped_updates: bool = Field(True, description="or an update was skipped as not finite")


_ROUNDING = 1e-9  # 0.8 - 0.6 is a little more than 0.2 in fp64


def collapse_reason(
    config: CollapseConfig, scores: Sequence[float], skipped_updates: int
) -> str | None:
    """Says why a run counts as collapsed, or returns None.

    Args:
        scores: of the evaluations in order, the base model's first; at least that.
        skipped_updates: updates of the run that were not made, their gradient not being finite.
    """
    base, best, last = scores[0], max(scores), scores[-1]
    if best - last > config.drop + _ROUNDING:
        return f"last score {last:.3f} is more than {config.drop:g} below its best, {best:.3f}"
    if base - last > config.below_base + _ROUNDING:
        return (
            f"last score {last:.3f} is more than {config.below_base:g} below the base, {base:.3f}"
        )
    if config.skipped_updates and skipped_updates:
        return f"{skipped_updates} updates skipped as not finite"
    return None


def definition(config: CollapseConfig) -> str:
    """Says in a sentence, for the reader of a table, what counts as a collapse."""
    text = (
        f"A run has collapsed if its last evaluation score is more than {config.drop:g} below its "
        f"own best one, or more than {config.below_base:g} below the base model's"
    )
    return text + (
        ", or if an update was skipped as not finite." if config.skipped_updates else "."
    )


def _named(given: Any) -> Any:
    """Turns a list of names into a mapping of them to no values of their own."""
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        if len(set(given)) < len(given):
            raise PydanticCustomError("names", "Input names something twice")
        return {name: {} for name in given}
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise PydanticCustomError("names", "Input should be names, or `name: values` lines")
    return {name: {} if values is None else values for name, values in given.items()}


class ComparisonConfig(Section):
    compare_dir: str
    base: str = Field(description="configuration of every run; relative to the comparison's file")
    set: Values = Field(default_factory=dict, description="for every run")
    methods: Annotated[dict[str, Values], BeforeValidator(_named)] = Field(
        default_factory=dict,
        description="names from studies/methods.py; or own names with their values, which are "
        "added to those of the method that has the same name",
    )
    mismatches: Annotated[dict[str, Values], BeforeValidator(_named)] = Field(
        default_factory=lambda: {AS_CONFIGURED: {}}, description="name: values"
    )
    seeds: list[int] = Field(default_factory=list)
    final_evaluations: int = Field(3, ge=1, description="whose mean is the final score")
    collapse: CollapseConfig = CollapseConfig()


def load_comparison(
    path: str | Path,
    overrides: list[str],
    methods: str | None = None,
    mismatches: str | None = None,
    seeds: str | None = None,
) -> ComparisonConfig:
    """Reads the file; what the command line chooses replaces what the file lists.

    Args:
        overrides: of the comparison, such as compare_dir=runs/other.
        methods, mismatches, seeds: separated by commas; None leaves the file's.

    Raises:
        UserError: one sentence, for a bad value, an unknown name, an empty list or no seed.
    """
    config = load_section(ComparisonConfig, path, overrides)
    config.base = str(Path(path).parent / config.base)
    if methods is not None:
        names = _words("--methods", methods)
        config.methods = {name: config.methods.get(name, {}) for name in names}
    if mismatches is not None:
        names = _words("--mismatch", mismatches)
        unknown = [name for name in names if name not in config.mismatches]
        if unknown:
            raise UserError(
                f"--mismatch names '{unknown[0]}', which {path} does not define: use some of "
                f"{', '.join(config.mismatches)}, or add it to mismatches."
            )
        config.mismatches = {name: config.mismatches[name] for name in names}
    if seeds is not None:
        config.seeds = [_seed(word) for word in _words("--seeds", seeds)]
    _check(config, path)
    return config


def split_overrides(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Returns (those of the runs, those of the comparison). Raises UserError for seed, run_dir."""
    own: list[str] = []
    of_runs: list[str] = []
    for override in overrides:
        key = override.partition("=")[0].split(".")[0].strip()
        _refuse_own_key(key)
        (own if key in ComparisonConfig.model_fields else of_runs).append(override)
    return of_runs, own


def _check(config: ComparisonConfig, path: str | Path) -> None:
    for key in config.set:
        _refuse_own_key(key)
    for key, mend in (
        ("methods", "list some of " + ", ".join(NAMES)),
        ("mismatches", "name one, or drop the key"),
        ("seeds", "give --seeds 1,2,3, or list them in the file"),
    ):
        if not getattr(config, key):
            raise UserError(f"{path}: there are no {key}: {mend}.")
    for name in (*config.methods, *config.mismatches):
        if not _NAME.fullmatch(name):  # they become parts of tables, option lists and file names
            raise UserError(f"{path}: the name '{name}' may hold letters, digits and _.+- only.")
    for name, values in config.methods.items():
        if name not in NAMES and not values:
            near = get_close_matches(name, NAMES, n=1)
            mend = f"did you mean {near[0]}" if near else f"use some of {', '.join(NAMES)}"
            raise UserError(
                f"There is no method '{name}': {mend}, or give it values below methods in {path}."
            )


def _refuse_own_key(key: str) -> None:
    if key in ("seed", "run_dir"):
        mend = "list it in seeds" if key == "seed" else "set compare_dir"
        raise UserError(f"{key} cannot be the same for all runs of a comparison: {mend}.")


def _words(option: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words) or len(set(words)) < len(words):
        raise UserError(
            f"{option} is '{text}': give different values with single commas between them."
        )
    return words


def _seed(word: str) -> int:
    if not word.isdecimal():
        raise UserError(f"--seeds holds '{word}': give whole numbers, as in --seeds 1,2,3.")
    return int(word)
