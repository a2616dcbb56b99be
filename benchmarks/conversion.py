"""Conversions of a 1 GB model: their speed against a copy of the file, and their memory."""

import os
import shutil
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from alp_megatron.commands.convert import default_workers
from alp_megatron.config.schema import Config, ModelConfig
from alp_megatron.conversion.to_hf import megatron_to_hf
from alp_megatron.conversion.to_megatron import hf_to_megatron
from benchmarks.rounds import seconds_by_rounds
from benchmarks.row import Row, compare
from tests.support.large_model import MEMORY_LIMIT, make_large_model, run_measured

ROUNDS = 3


def conversion() -> list[Row]:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "hf").mkdir()
        model = make_large_model(place / "hf")
        megatron = place / "megatron"
        # Kept: what the other direction reads.
        memory = [
            _memory("to Megatron", megatron, "hf-to-megatron", "--hf", model),
            _memory("to Hugging Face", place / "back", "megatron-to-hf", "--megatron", megatron),
        ]
        return [*_speed(model, megatron, place), *memory]


def _speed(model: Path, megatron: Path, place: Path) -> list[Row]:
    weights, out = model / "model.safetensors", place / "out"
    config = Config(model=ModelConfig(path=str(model)))
    options = dict(workers=default_workers(), verify="off")

    def to_megatron() -> None:
        hf_to_megatron(model, out, config, **options)

    def to_hf() -> None:
        megatron_to_hf(megatron, out, megatron, config, shard_bytes=4 * 10**9, **options)

    def copy() -> None:
        shutil.copyfile(weights, out)
        with out.open("rb") as file:
            os.fsync(file.fileno())

    contenders = {"to Megatron": to_megatron, "to Hugging Face": to_hf, "copy": copy}
    with Path(os.devnull).open("w") as null, redirect_stdout(null):
        seconds = seconds_by_rounds(contenders, ROUNDS, warm_up=1, meet=lambda: _remove(out))
    megabytes = weights.stat().st_size / 1e6
    speeds = {name: [megabytes / s for s in values] for name, values in seconds.items()}
    return [
        Row(
            f"conversion {name}",
            "MB/s",
            **compare(speeds[name], speeds["copy"]),
            reference_name="a copy of the file, until it is on the disk",
            note=f"{megabytes:.0f} MB in bf16, {options['workers']} processes, not verified.",
        )
        for name in ("to Megatron", "to Hugging Face")
    ]


def _remove(out: Path) -> None:
    if out.is_dir():
        shutil.rmtree(out)
    out.unlink(missing_ok=True)


def _memory(name: str, out: Path, *arguments) -> Row:
    start, peak = run_measured(out, *arguments)
    above = (peak - start) / 1e6
    ratio = above / (MEMORY_LIMIT / 1e6)
    return Row(
        f"conversion {name}: memory",
        "MB",
        value=above,
        reference=MEMORY_LIMIT / 1e6,
        reference_name="the limit",
        ratio=ratio,
        ratio_low=ratio,
        ratio_high=ratio,
        at_most=1.0,
        note=f"The most above its start ({start / 1e6:.0f} MB), all processes, verification too.",
    )
