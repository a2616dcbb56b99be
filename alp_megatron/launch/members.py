"""A sweep: which runs it consists of, and manifest.jsonl, which gives each its number for ever."""

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field

from alp_megatron.config.load import load_section
from alp_megatron.config.schema import Section
from alp_megatron.errors import UserError
from alp_megatron.files import write_atomic

Values = dict[str, Any]  # dotted key: value


class Condition(Section):
    """Gives further values to the runs that have those of `when`."""

    when: Values = Field(min_length=1)
    grid: dict[str, list[Any]] = Field(min_length=1)


class SweepConfig(Section):
    sweep_dir: str
    base: str = Field(description="configuration of every run; relative to the sweep's file")
    set: Values = Field(default_factory=dict, description="for every run")
    grid: dict[str, list[Any]] = Field(default_factory=dict, description="every combination")
    list_: list[Values] = Field(default_factory=list, alias="list", description="sets of values")
    conditions: list[Condition] = Field(default_factory=list)
    seeds: list[int] = Field(default_factory=list)
    max_parallel: int | None = Field(None, ge=1, description="members that run at the same time")


def load_sweep(path: str | Path) -> SweepConfig:
    sweep = load_section(SweepConfig, path)
    for section in (sweep.grid, *(condition.grid for condition in sweep.conditions)):
        for key, values in section.items():
            if not values:
                raise UserError(f"{path}: grid.{key} is an empty list: give values, or drop it.")
    sweep.base = str(Path(path).parent / sweep.base)
    return sweep


def expand(sweep: SweepConfig) -> list[Values]:
    """Returns the values in which the members differ: list x grid x conditions x seeds, in that
    order.

    Raises:
        UserError: there is no member, or two are the same run.
    """
    members = [
        one | dict(zip(sweep.grid, values, strict=True))
        for one in sweep.list_ or [{}]
        for values in product(*sweep.grid.values())
    ]
    for condition in sweep.conditions:
        members = [further for member in members for further in _meet(condition, member, sweep.set)]
    if sweep.seeds:
        members = [member | {"seed": seed} for member in members for seed in sweep.seeds]
    if members == [{}]:
        raise UserError("the sweep has no member: give grid, list or seeds.")
    seen: dict[str, Values] = {}
    for member in members:
        if identity(member) in seen:
            raise UserError(f"the sweep has '{name(member)}' twice: give it once.")
        seen[identity(member)] = member
    return members


def _meet(condition: Condition, member: Values, common: Values) -> list[Values]:
    """Returns the member as it is, or once for each combination of the condition's values."""
    known = common | member
    if any(key not in known or known[key] != value for key, value in condition.when.items()):
        return [member]
    combinations = product(*condition.grid.values())
    return [member | dict(zip(condition.grid, values, strict=True)) for values in combinations]


def identity(values: Values) -> str:
    """Returns a text that is equal for equal values, in whatever order they stand."""
    return json.dumps(values, sort_keys=True)


def name(values: Values) -> str:
    """Returns 'method=alp seed=1': the last part of each key."""
    return " ".join(f"{key.split('.')[-1]}={_plain(value)}" for key, value in values.items())


def overrides(values: Values) -> list[str]:
    """Returns the values as on the command line: JSON is YAML as well."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Member:
    index: int
    values: Values

    @property
    def name(self) -> str:
        return name(self.values)

    def run_dir(self, sweep_dir: Path) -> Path:
        return sweep_dir / f"{self.index:04d}"


def read_manifest(sweep_dir: Path) -> list[Member]:
    """Returns the members in order of their numbers; none where the file is not there."""
    path = sweep_dir / MANIFEST
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [Member(line["index"], line["values"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: restore it, or choose another sweep_dir.") from error


def extended(known: list[Member], wanted: list[Values]) -> list[Member]:
    """Returns the wanted members: with the number they have, or with the next free one."""
    numbers = {identity(member.values): member.index for member in known}
    for values in wanted:
        numbers.setdefault(identity(values), len(numbers))
    return [Member(numbers[identity(values)], values) for values in wanted]


def write_manifest(sweep_dir: Path, known: list[Member], wanted: list[Member]) -> None:
    """Writes the members; those that are wanted no more stay in the file: their runs are there."""
    members = {member.index: member for member in (*known, *wanted)}
    lines = [
        json.dumps({"index": index, "name": members[index].name, "values": members[index].values})
        for index in sorted(members)
    ]
    try:
        sweep_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"sweep_dir={sweep_dir} cannot be made: {error.strerror}; choose another one."
        ) from error
    write_atomic(sweep_dir / MANIFEST, "".join(line + "\n" for line in lines).encode())
