"""manifest.jsonl in a sweep's directory: one line a member, whose number never changes."""

import json
from dataclasses import dataclass
from pathlib import Path

from alp_megatron.diagnostics.files import write_atomic
from alp_megatron.errors import UserError
from launch.sweep_config import Values, identity, name

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
    """The members in order of their numbers; none where the file is not there."""
    path = sweep_dir / MANIFEST
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [Member(line["index"], line["values"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: restore it, or choose another sweep_dir.") from error


def extended(known: list[Member], wanted: list[Values]) -> list[Member]:
    """The wanted members: with the number they have, or with the next free one."""
    numbers = {identity(member.values): member.index for member in known}
    for values in wanted:
        numbers.setdefault(identity(values), len(numbers))
    return [Member(numbers[identity(values)], values) for values in wanted]


def write_manifest(sweep_dir: Path, known: list[Member], wanted: list[Member]) -> None:
    """Members that are wanted no more stay in the file: their runs are there."""
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
