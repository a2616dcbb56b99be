"""Servers, transports and quantisations that a run cannot have are refused with one sentence."""

import pytest
import torch

from alp_megatron.check.rollout import check_quantization, check_servers
from alp_megatron.config.load import config_from
from alp_megatron.errors import UserError
from alp_megatron.hf.shape import read_model_shape
from alp_megatron.hf.tensors import HfTensors
from tests.support.models import SHAPES, make_model

URLS = "rollout.server_urls"


def configure(*overrides: str):
    return config_from({"model": {"path": "M"}}, list(overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["rollout.engine=server", "rollout.num_servers=3"],
        ["rollout.engine=server", f"{URLS}=[http://a:1, http://10.0.0.1:80/, 'http://[::1]:9']"],
        ["rollout.engine=server", "rollout.transport=directory", "runtime.device=cpu"],
        ["rollout.engine=server", "rollout.transport=nccl", "rollout.num_servers=2"],
    ],
)
def test_what_can_work_passes(overrides):
    check_servers(configure(*overrides))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["rollout.num_servers=2"], ["rollout.num_servers needs rollout.engine=server"]),
        ([f"{URLS}=[http://a:1]"], [f"{URLS} needs rollout.engine=server"]),
        (["rollout.transport=directory"], ["rollout.transport needs rollout.engine=server"]),
        (
            ["rollout.engine=server", "rollout.num_servers=2", f"{URLS}=[http://a:1]"],
            ["rollout.num_servers=2", URLS],
        ),
        (["rollout.engine=server", f"{URLS}=[http://a:1, http://a:1/]"], [URLS, "twice"]),
        (
            ["rollout.engine=server", "rollout.transport=nccl", "runtime.device=cpu"],
            ["rollout.transport=nccl", "runtime.device=cuda"],
        ),
        (
            ["rollout.engine=server", "rollout.transport=cuda_ipc", "rollout.num_servers=2"],
            ["rollout.transport=cuda_ipc", "rollout.num_servers=2"],
        ),
    ],
)
def test_what_cannot_is_refused_by_name(overrides, words):
    with pytest.raises(UserError) as caught:
        check_servers(configure(*overrides))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    "url",
    [
        "host-a:8001",
        "http://host-a",
        "http://:8001",
        "https://host-a:8001",
        "http://host-a:port",
        "http://host-a:99999",
        "http://host-a:8001/v1",
        "http://host-a:8001?x=1",
        "",
    ],
)
def test_a_malformed_address_is_shown(url):
    with pytest.raises(UserError, match="rollout.server_urls: '.*' is not an address") as caught:
        check_servers(configure("rollout.engine=server", f"{URLS}=['{url}']"))
    assert f"'{url}'" in str(caught.value)


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
    make_model(tmp_path, sizes | dict(num_key_value_heads=4, vocab_size=64))
    int4 = "rollout.quantization=int4"
    assert check(tmp_path, int4) == (
        f"{int4} cannot hold model.layers.0.mlp.down_proj.weight (112 input channels are no "
        "multiple of 32): add ['*.down_proj'] to rollout.quantization_ignore, or use int8 or fp8."
    )
    assert check(tmp_path, int4, "rollout.quantization_ignore=['*.down_proj']") == ""


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_experts_stay_as_they_are_on_a_cpu(tmp_path, quantization):
    make_model(tmp_path, SHAPES["qwen3_moe"])
    key = f"rollout.quantization={quantization}"
    assert "set rollout.quantization_ignore=['*.experts.*']." in check(tmp_path, key)
    assert check(tmp_path, key, "rollout.quantization_ignore=['*.experts.*']") == ""


def test_an_fp8_cache_needs_avx512(tmp_path, monkeypatch):
    make_model(tmp_path, SHAPES["qwen3 tied"])
    fp8 = "rollout.kv_cache_dtype=fp8"
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    assert check(tmp_path, fp8) == ""
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False)
    assert f"{fp8} needs a GPU or a CPU with AVX-512" in check(tmp_path, fp8)


def test_a_gpu_gives_no_float32(tmp_path, monkeypatch):
    make_model(tmp_path, SHAPES["qwen3 tied"])
    monkeypatch.setattr("alp_megatron.runtime.mesh.device_type", lambda _: "cuda")
    refusal = check(tmp_path, "rollout.quantization=fp8", "rollout.dtype=float32")
    assert refusal.endswith("set rollout.dtype=bfloat16.")
    assert check(tmp_path, "rollout.quantization=fp8") == ""
