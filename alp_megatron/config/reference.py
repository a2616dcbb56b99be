"""Every key of the configuration with its type, default and meaning, from the schema."""

import json
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from alp_megatron.config.schema import Config, Section

_NAMES = {int: "integer", float: "number", str: "text", bool: "true | false", NoneType: "null"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class Key:
    """One key. `kind` names its values with their bounds; `default` is None where it must be given.

    A default is written as YAML has it, so that `name=default` can stand on the command line.
    """

    name: str
    kind: str
    default: str | None
    meaning: str


def keys(section: type[Section] = Config, prefix: str = "") -> list[Key]:
    """Returns all keys below a section, in the schema's order, with `prefix` before their names.

    A section that may be null is a key itself; one that may not is only its keys.
    """
    found = []
    for name, field in section.model_fields.items():
        below = _section(field.annotation)
        if below is not field.annotation:
            found.append(_key(prefix + name, field))
        if below is not None:
            found += keys(below, f"{prefix}{name}.")
    return found


def _key(name: str, field: FieldInfo) -> Key:
    default = None
    if not field.is_required():
        default = json.dumps(field.get_default(call_default_factory=True)).strip('"')
    assert field.description, f"{name} has no description"
    return Key(
        name, ", ".join([_kind(field.annotation), *_bounds(field)]), default, field.description
    )


def _section(annotation: Any) -> type[Section] | None:
    """Returns the section that a key holds, also where it may be null; else None."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(map(_kind, get_args(annotation)))
    if get_origin(annotation) is list:
        return f"list of {_kind(get_args(annotation)[0])}"
    return "section" if _section(annotation) else _NAMES[annotation]


def _bounds(field: FieldInfo) -> list[str]:
    return [
        f"{sign} {getattr(bound, name)}"
        for bound in field.metadata
        for name, sign in _BOUNDS.items()
        if hasattr(bound, name)
    ]
