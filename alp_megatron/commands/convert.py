"""`alp-megatron convert`."""

import os
from argparse import Namespace
from pathlib import Path

from alp_megatron.check.validate import check_layout
from alp_megatron.config.load import config_from
from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.hf.shape import read_model_shape

_MAX_WORKERS = 4  # each takes memory, and the disk is soon the slower part


def to_megatron(arguments: Namespace) -> int:
    """Hugging Face directory -> Megatron checkpoint in the layout of the overrides."""
    config = _config(arguments.hf, arguments.overrides)
    workers = _workers(arguments.workers)
    from alp_megatron.conversion.to_megatron import hf_to_megatron

    hf_to_megatron(
        Path(arguments.hf), Path(arguments.out), config, workers=workers, verify=arguments.verify
    )
    return 0


def to_hf(arguments: Namespace) -> int:
    """Megatron checkpoint -> Hugging Face directory; the overrides' layout is for --verify."""
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
    return min(len(os.sched_getaffinity(0)), _MAX_WORKERS)


def _workers(wanted: int | None) -> int:
    if wanted is not None and wanted < 1:
        raise UserError(f"--workers {wanted} must be 1 or more.")
    return wanted or default_workers()
