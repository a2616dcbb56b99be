"""One YAML file, what it extends, and the overrides of the command line become a Config."""

import json
from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alp_megatron.config.methods import with_method_defaults
from alp_megatron.config.schema import Config, Section
from alp_megatron.config.yaml_io import dump_yaml, parse_yaml, read_mapping
from alp_megatron.errors import UserError


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"trainer": {"lr": 1}} -> {"trainer.lr": 1}"""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Reads a configuration file.

    `extends:` names one file or a list of files, relative to the file that names them; later
    ones and then the file itself win. Overrides such as `trainer.lr=1e-5` win over all.
    Paths inside the configuration (`model.path`, `task.train`, `run_dir`) are relative to the
    current directory.

    Raises:
        UserError: one sentence naming the file or dotted key, and the mend.
    """
    return config_from(_read_with_parents(Path(path), ()), overrides)


def config_from(tree: dict[str, Any], overrides: list[str] | None = None) -> Config:
    """Makes a Config of nested sections and the overrides of the command line; see load_config."""
    tree.setdefault("model", {})  # so that what is missing is model.path, not model
    config = section_from(Config, tree, overrides)
    config.objective = with_method_defaults(config.objective)
    return config


def load_section[S: Section](
    kind: type[S], path: str | Path, overrides: list[str] | None = None
) -> S:
    """Reads a file of another kind as load_config does: a cluster, a sweep."""
    return section_from(kind, _read_with_parents(Path(path), ()), overrides)


def section_from[S: Section](
    kind: type[S], tree: dict[str, Any], overrides: list[str] | None = None
) -> S:
    """Returns the values of a tree as a typed section. Raises UserError naming the dotted key."""
    for override in overrides or []:
        _merge(tree, _parse_override(override))
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        # What is missing comes last: it may be there under a misspelt name.
        first = min(error.errors(), key=lambda found: found["type"] == "missing")
        raise UserError(_explain(first, kind)) from error


def resolved_yaml(config: Config) -> str:
    """Returns the whole configuration as YAML; load_config reads it back to an equal Config."""
    return dump_yaml(config.model_dump())


def _read_with_parents(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    resolved = path.resolve()
    if resolved in children:
        raise UserError(f"{path}: `extends` leads back to this file; remove it from one of them.")
    tree = read_mapping(path)
    parents = tree.pop("extends", [])
    if isinstance(parents, str):
        parents = [parents]
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise UserError(f"{path}: `extends` must be a path or a list of paths.")
    merged: dict[str, Any] = {}
    for parent in parents:
        _merge(merged, _read_with_parents(path.parent / parent, (*children, resolved)))
    return _merge(merged, tree)


def _merge(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """Merges update into base, section by section; scalars and lists are replaced."""
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
    return base


def _parse_override(override: str) -> dict[str, Any]:
    dotted, equals, text = override.partition("=")
    names = dotted.strip().split(".")
    if not equals or not all(names):
        raise UserError(f"'{override}' is not an override; write key=value, as in trainer.lr=1e-5.")
    value = parse_yaml(text, f"override {dotted}")
    for name in reversed(names):
        value = {name: value}
    return value


def _explain(error: Any, kind: type[Section]) -> str:
    """Returns one sentence for a pydantic error, with the dotted key and the mend."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return f"Unknown key {key}: {nearest_key(key, kind)}."
    if error["type"] == "missing":
        return f"{key} is missing: set it in the file or as {key}=VALUE."
    shown = _shown(error["input"])
    if error["type"] == "model_type":
        return f"{key} is {shown}: it should be a section of `key: value` lines."
    return f"{key} is {shown}: {error['msg'].replace('Input', 'it', 1)}."


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else "a list"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest_key(key: str, kind: type[Section]) -> str:
    """Says which key may have been meant, or where the keys are listed."""

    def likeness(known: str) -> float:
        whole = SequenceMatcher(None, key, known).ratio()
        last = SequenceMatcher(None, key.split(".")[-1], known.split(".")[-1]).ratio()
        return max(whole, last) + 0.01 * whole  # among equal last names, the nearer section

    best = max(_known_keys(kind), key=likeness)
    if likeness(best) >= 0.6:
        return f"did you mean {best}"
    if kind is Config:
        return "`alp-megatron config` prints the keys"
    return f"the keys are listed in {kind.__module__.replace('.', '/')}.py"


def _known_keys(section: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys += _known_keys(field.annotation, f"{prefix}{name}.")
    return keys
