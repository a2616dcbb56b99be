"""Hugging Face -> Megatron in any layout -> Hugging Face is bitwise; the logits are HF's."""

import secrets
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.layouts import layout_config, layouts_of, some_sequences
from tests.support.marks import slow_unless
from tests.support.models import (
    FAMILIES,
    SHAPES,
    hf_logprobs,
    make_model,
    random_config,
    write_transformers_4_config,
)
from tests.support.trips import assert_same_weights, to_hf, to_megatron


def trips() -> list:
    """Every shape in every layout; by default in the last, which has everything, and a shape of
    every family also where there are more ranks than key-value heads or than experts."""
    found, seen = [], set()
    for name, shape in SHAPES.items():
        *others, last = layouts_of(name)
        for layout in (*others, last):
            cuts = layout in ("tp4", "tp4-sp", "tp2-sp-ep4-dp2") and shape["family"] not in seen
            default = cuts or layout == last
            found.append(slow_unless(default, name, layout))
        seen.add(shape["family"])
    return found


def check_layout(workers, tmp_path: Path, model_dir: str, expected: list, layout: str) -> None:
    """Convert, let Megatron load, compute and save in the layout, convert back, compare."""
    config = layout_config(model_dir, layout)
    converted = to_megatron(model_dir, tmp_path / layout, config.model.tensor_model_parallel_size)
    saved = tmp_path / f"{layout}-saved"
    saved.mkdir()
    ours = workers.run(
        "tests.support.conversion_jobs:through_megatron",
        config,
        config.runtime.world_size,
        state_dir=str(converted / "state"),
        saved=str(saved),
        sequences=some_sequences(),
    )[0]
    for sample, logprobs in enumerate(expected):
        torch.testing.assert_close(ours[sample].double(), logprobs, rtol=0, atol=1e-4)
    back = to_hf(saved, tmp_path / f"{layout}-back", model_dir)
    assert_same_weights(back, model_dir)


@pytest.mark.parametrize(("name", "layout"), trips())
def test_round_trip_through_megatron(workers, tmp_path, model_of, name, layout):
    check_layout(workers, tmp_path, *model_of(name), layout)


@pytest.mark.parametrize("name", SHAPES)
def test_round_trip_without_megatron(tmp_path, model_of, name):
    """Stored in the cuts of one layout and read back as they are, in 16 bits as well."""
    model_dir, _ = model_of(name)
    half = make_model(tmp_path / "half", SHAPES[name], dtype="bfloat16")
    for tensor_parallel in (1, 2, 4):
        for source in (model_dir, half):
            out = tmp_path / f"{Path(source).name}{tensor_parallel}"
            converted = to_megatron(source, out, tensor_parallel)
            back = to_hf(converted, out.with_suffix(".back"), converted)
            assert_same_weights(back, source)


@pytest.mark.parametrize("name", ["llama tied, scaled", "qwen3_moe"])
def test_a_config_of_transformers_4(workers, tmp_path, model_of, name):
    """It has other keys for the rotation and the experts."""
    directory, expected = model_of(name)
    model_dir = str(shutil.copytree(directory, tmp_path / "model"))
    write_transformers_4_config(model_dir)
    check_layout(workers, tmp_path, model_dir, expected, "tp2-sp")


@pytest.mark.slow
@pytest.mark.parametrize("number", (1, 2))
@pytest.mark.parametrize("family", FAMILIES)
def test_random_shapes(workers, tmp_path, family, number):
    """Shapes that nobody chose. A failure is repeated with the seed that is printed."""
    seed = secrets.randbelow(10**6)
    shape = random_config(family, seed)
    print(f"random_config({family!r}, {seed}) = {shape}")
    model_dir = make_model(tmp_path / "model", shape, seed=seed)
    if number == 2:
        write_transformers_4_config(model_dir)
    expected = [hf_logprobs(model_dir, sequence) for sequence in some_sequences()]
    layouts = next(layouts_of(name) for name in SHAPES if SHAPES[name]["family"] == family)
    layout = list(layouts)[-number]
    check_layout(workers, tmp_path, model_dir, expected, layout)
    for tensor_parallel in (1, 2, 4):
        converted = to_megatron(model_dir, tmp_path / f"tp{tensor_parallel}", tensor_parallel)
        back = to_hf(converted, tmp_path / f"tp{tensor_parallel}-back", converted)
        assert_same_weights(back, model_dir)
