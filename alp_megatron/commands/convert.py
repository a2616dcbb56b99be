"""`alp-megatron convert`: Hugging Face to Megatron, and back."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from alp_megatron.check.validate import check_layout
from alp_megatron.commands.arguments import add_overrides
from alp_megatron.config.load import config_from
from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.hf.shape import read_model_shape

_MAX_WORKERS = 4  # each takes memory, and the disk is soon the slower part


def add_arguments(parser: ArgumentParser) -> None:
    directions = parser.add_subparsers(required=True, metavar="DIRECTION", dest="direction")
    to_megatron = directions.add_parser("hf-to-megatron", help="write a Megatron checkpoint")
    to_megatron.add_argument("--hf", required=True, help="Hugging Face model directory")

    to_hf = directions.add_parser("megatron-to-hf", help="write a Hugging Face model")
    to_hf.add_argument("--megatron", required=True, help="checkpoint, e.g. checkpoints/step_000010")
    to_hf.add_argument("--hf", help="where config.json and the tokenizer are, if not there")
    to_hf.add_argument("--shard-size", type=float, default=4, help="GB in one file")

    for direction in (to_megatron, to_hf):
        add_overrides(direction)
        direction.add_argument("--out", required=True, help="directory to make")
        direction.add_argument("--workers", type=int, help="processes; the cores, at most 4")
        direction.add_argument(
            "--verify",
            nargs="?",
            choices=("auto", "full", "off"),
            const="full",
            default="auto",
            help="compare all tensors and the log-probabilities; auto: less of a large model",
        )


def run(arguments: Namespace) -> int:
    """Converts in the direction that was named. Raises UserError and RunError."""
    directions = {"hf-to-megatron": _to_megatron, "megatron-to-hf": _to_hf}
    return directions[arguments.direction](arguments)


def _to_megatron(arguments: Namespace) -> int:
    """Writes the checkpoint in the layout of the overrides."""
    config = _config(arguments.hf, arguments.overrides)
    workers = _workers(arguments.workers)
    from alp_megatron.conversion.to_megatron import hf_to_megatron

    hf_to_megatron(
        Path(arguments.hf), Path(arguments.out), config, workers=workers, verify=arguments.verify
    )
    return 0


def _to_hf(arguments: Namespace) -> int:
    """Writes the model; the layout of the overrides is for --verify."""
    workers = _workers(arguments.workers)
    if not arguments.shard_size > 0:
        raise UserError(f"--shard-size {arguments.shard_size} must be more than 0 GB.")
    from alp_megatron.conversion.to_hf import find_model, megatron_to_hf

    megatron_dir = Path(arguments.megatron)
    hf_dir = find_model(megatron_dir, arguments.hf)
    megatron_to_hf(
        megatron_dir,
        Path(arguments.out),
        hf_dir,
        _config(str(hf_dir), arguments.overrides),
        shard_bytes=int(arguments.shard_size * 1e9),
        workers=workers,
        verify=arguments.verify,
    )
    return 0


def _config(model_dir: str, overrides: list[str]) -> Config:
    config = config_from({"model": {"path": model_dir}}, overrides)
    check_layout(config, read_model_shape(model_dir))
    return config


def default_workers() -> int:
    """Returns how many processes convert where --workers does not say."""
    return min(len(os.sched_getaffinity(0)), _MAX_WORKERS)


def _workers(wanted: int | None) -> int:
    if wanted is not None and wanted < 1:
        raise UserError(f"--workers {wanted} must be 1 or more.")
    return wanted or default_workers()
