"""YAML 1.2 core-schema reading and writing, with errors that name the file and the line.

PyYAML follows YAML 1.1, where `1e-5` is a string, `010` is eight, `no` is false and
`2026-01-01` is a date. Here only null, true/false, decimal integers and decimal floats
are special; everything else is a string.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from alp_megatron.errors import UserError

_FIRST_CHARS = "-+.0123456789"
_SCALARS = [  # the first match wins, so int stands before float
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list(_FIRST_CHARS)),
    (
        "float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        list(_FIRST_CHARS),
    ),
]


def _resolvers() -> dict[str, list]:
    table: dict[str, list] = {}
    for name, pattern, first_chars in _SCALARS:
        for char in first_chars:
            entry = (f"tag:yaml.org,2002:{name}", re.compile(rf"^{pattern}$"))
            table.setdefault(char, []).append(entry)
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        scalar_keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        seen = set()
        for key in scalar_keys:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    # The same resolvers, so that a string such as "1e-5" is quoted when it is written.
    yaml_implicit_resolvers = _resolvers()


def parse_yaml(text: str, origin: str) -> Any:
    """Returns the value of one YAML document; `origin` names it in errors.

    Raises:
        UserError: naming origin and line, for bad syntax or a key given twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{origin}:{line}: {error.problem or error.context}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{origin}: not YAML text: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise UserError(f"{origin}: nested too deeply to be a configuration.") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file. Raises UserError naming the file where it holds none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; check the path.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text; give a YAML file.") from error
    tree = parse_yaml(text, str(path))
    if tree is None:
        raise UserError(f"{path}: is empty; it needs at least model.path.")
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold `key: value` lines, not a {type(tree).__name__}.")
    return tree


def dump_yaml(tree: dict[str, Any]) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
