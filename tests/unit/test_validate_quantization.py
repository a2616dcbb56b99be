"""Quantisations that a model's shapes or the machine's engine cannot take."""

import pytest
import torch

from alp_megatron.check.rollout import check_quantization
from alp_megatron.config.load import config_from
from alp_megatron.errors import UserError
from alp_megatron.hf.shape import read_model_shape
from alp_megatron.hf.tensors import HfTensors
from tests.families import SHAPES, make_family_model


def check(directory, *overrides: str) -> str:
    """The refusal, '' if there is none."""
    config = config_from({"model": {"path": str(directory)}}, ["runtime.device=cpu", *overrides])
    try:
        check_quantization(config, HfTensors(directory).shapes, read_model_shape(directory))
    except UserError as error:
        return str(error)
    return ""


def test_int4_needs_whole_groups(tmp_path):
    sizes = dict(family="llama", hidden_size=64, intermediate_size=112, num_attention_heads=4)
    make_family_model(tmp_path, sizes | dict(num_key_value_heads=4, vocab_size=64))
    int4 = "rollout.quantization=int4"
    assert check(tmp_path, int4) == (
        f"{int4} cannot hold model.layers.0.mlp.down_proj.weight (112 input channels are no "
        "multiple of 32): add ['*.down_proj'] to rollout.quantization_ignore, or use int8 or fp8."
    )
    assert check(tmp_path, int4, "rollout.quantization_ignore=['*.down_proj']") == ""


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_experts_stay_as_they_are_on_a_cpu(tmp_path, quantization):
    make_family_model(tmp_path, SHAPES["qwen3_moe"])
    key = f"rollout.quantization={quantization}"
    assert "set rollout.quantization_ignore=['*.experts.*']." in check(tmp_path, key)
    assert check(tmp_path, key, "rollout.quantization_ignore=['*.experts.*']") == ""


def test_an_fp8_cache_needs_avx512(tmp_path, monkeypatch):
    make_family_model(tmp_path, SHAPES["qwen3 tied"])
    fp8 = "rollout.kv_cache_dtype=fp8"
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    assert check(tmp_path, fp8) == ""
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False)
    assert f"{fp8} needs a GPU or a CPU with AVX-512" in check(tmp_path, fp8)


def test_a_gpu_gives_no_float32(tmp_path, monkeypatch):
    make_family_model(tmp_path, SHAPES["qwen3 tied"])
    monkeypatch.setattr("alp_megatron.runtime.mesh.device_type", lambda _: "cuda")
    refusal = check(tmp_path, "rollout.quantization=fp8", "rollout.dtype=float32")
    assert refusal.endswith("set rollout.dtype=bfloat16.")
    assert check(tmp_path, "rollout.quantization=fp8") == ""
