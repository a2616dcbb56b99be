"""Arguments that several commands have."""

from argparse import ArgumentParser


def add_config(parser: ArgumentParser, text: str = "YAML file") -> None:
    """Adds the configuration file, and the overrides of its keys."""
    parser.add_argument("config", help=text)
    add_overrides(parser)


def add_overrides(parser: ArgumentParser, text: str = "e.g. trainer.lr=1e-5") -> None:
    """Adds `overrides`, a list of words such as trainer.lr=1e-5."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=text)
