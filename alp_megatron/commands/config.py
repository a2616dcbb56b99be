"""`alp-megatron config`: what can be configured, or what a file configures."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from textwrap import fill

from alp_megatron.commands.arguments import add_overrides
from alp_megatron.config.load import load_config, nearest_key, resolved_yaml
from alp_megatron.config.reference import Key, keys
from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError

_WIDTH = 100


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", help="a key or its beginning, as in trainer; or a YAML file"
    )
    add_overrides(parser, "for a file: values that win over its own")


def run(arguments: Namespace) -> int:
    """Prints all keys, those below one, or every value of a run of the file. Raises UserError."""
    what = arguments.what or ""
    if what.endswith((".yaml", ".yml")) or Path(what).is_file():
        print(resolved_yaml(load_config(what, arguments.overrides)), end="")
        return 0
    if arguments.overrides or "=" in what:
        raise UserError("key=value changes the values of a file: name one before it.")
    found = [key for key in keys() if key.name.startswith(what)]
    if not found:
        raise UserError(f"Unknown key {what}: {nearest_key(what, Config)}.")
    print("\n".join(map(_shown, found)))
    return 0


def _shown(key: Key) -> str:
    default = "must be given" if key.default is None else f"default {key.default}"
    meaning = fill(key.meaning, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return f"{key.name}  ({key.kind}; {default})\n{meaning}"
