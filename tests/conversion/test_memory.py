"""A conversion, verification included, takes a shard and a layer of memory, not the model's."""

import pytest

from tests.support.large_model import MEMORY_LIMIT, make_large_model, run_measured


@pytest.mark.slow
def test_memory_of_a_large_conversion(tmp_path):
    model = make_large_model(tmp_path)
    megatron, hf = tmp_path / "megatron", tmp_path / "hf"
    for out, *arguments in (
        (megatron, "hf-to-megatron", "--hf", model, "model.tensor_model_parallel_size=2"),
        (hf, "megatron-to-hf", "--megatron", megatron),
    ):
        start, peak = run_measured(out, *arguments)
        print(f"{arguments[0]}: {start / 1e6:.0f} MB at the start, {peak / 1e6:.0f} MB at most")
        assert 0 < start < peak < start + MEMORY_LIMIT
    assert (hf / "model.safetensors").stat().st_size > 1e9
