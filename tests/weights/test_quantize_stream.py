"""Which tensors are quantised or given noise, under which names, and what vLLM is told."""

import hashlib

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from torch.utils._python_dispatch import TorchDispatchMode

from alp_megatron.errors import UserError
from alp_megatron.perturbation.noise import NoiseKey
from alp_megatron.perturbation.philox import reference_gaussian
from alp_megatron.weights.quantize import codes as pieces
from alp_megatron.weights.quantize.codes import (
    pack_int4,
    quantize_fp8,
    quantize_fp8_blocks,
    quantize_int4,
    quantize_int8,
)
from alp_megatron.weights.quantize.scheme import quantization_config, scheme_of
from alp_megatron.weights.quantize.stream import WeightNoise, quantized

FORMATS = ("int8", "fp8", "fp8_block", "int4")
MLP = "model.layers.0.mlp."
SHAPES = {
    "model.embed_tokens.weight": (64, 160),
    "model.layers.0.input_layernorm.weight": (160,),
    "model.layers.0.self_attn.q_proj.weight": (256, 160),
    "model.layers.0.self_attn.q_proj.bias": (256,),
    "model.layers.0.self_attn.k_proj.weight": (128, 160),
    "model.layers.0.self_attn.v_proj.weight": (128, 160),
    "model.layers.0.self_attn.o_proj.weight": (160, 256),
    "model.layers.0.mlp.gate.weight": (4, 160),  # a router
    "model.layers.0.mlp.experts.0.gate_proj.weight": (128, 160),
    "model.layers.0.mlp.experts.0.up_proj.weight": (128, 160),
    "model.layers.0.mlp.experts.0.down_proj.weight": (160, 128),
    "lm_head.weight": (64, 160),
}
PROJECTIONS = {name for name in SHAPES if name.endswith("_proj.weight")}


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).bfloat16() for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("quantization", FORMATS)
def test_projections_only_and_the_rest_is_untouched(weights, quantization):
    scheme = scheme_of(SHAPES, quantization, ())
    assert scheme.groups.keys() == PROJECTIONS
    stream = dict(quantized(weights.items(), scheme))
    assert {name: tuple(t.shape) for name, t in stream.items()} == scheme.stored_shapes(SHAPES)
    for name in SHAPES.keys() - PROJECTIONS:
        assert stream[name] is weights[name]
    ignored = set(quantization_config(scheme)["ignore"])
    assert {"lm_head", "model.embed_tokens", "model.layers.0.mlp.gate"} <= ignored


@pytest.mark.parametrize("quantization", FORMATS)
def test_in_pieces_as_in_one(weights, quantization, monkeypatch):
    """Rows beyond one piece, which the last piece does not fill."""
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = {
        "int8": quantize_int8,
        "fp8": quantize_fp8,
        "fp8_block": quantize_fp8_blocks,
        "int4": lambda w: (pack_int4(quantize_int4(w, 32)[0]), quantize_int4(w, 32)[1]),
    }[quantization](weights[name])
    monkeypatch.setattr(pieces, "CACHED", 160 * 150)
    *_, codes, scales = dict(
        quantized([(name, weights[name])], scheme_of(SHAPES, quantization, ()))
    ).values()
    assert torch.equal(codes.view(torch.uint8), expected[0].view(torch.uint8))
    assert torch.equal(scales, expected[1])


@pytest.mark.parametrize("quantization", FORMATS)
def test_ignored_layers_keep_their_weights(weights, quantization):
    scheme = scheme_of(SHAPES, quantization, ("*.experts.*",))
    assert scheme.groups.keys() == {name for name in PROJECTIONS if "experts" not in name}
    stream = dict(quantized(weights.items(), scheme))
    assert stream[f"{MLP}experts.0.up_proj.weight"] is weights[f"{MLP}experts.0.up_proj.weight"]
    assert f"{MLP}experts.0.up_proj" in quantization_config(scheme)["ignore"]


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named(weights, quantization, value):
    name = f"{MLP}experts.0.up_proj.weight"
    weights[name][100, 3] = value
    with pytest.raises(UserError, match=f"tensor {name} holds NaN or infinite values"):
        dict(quantized(weights.items(), scheme_of(SHAPES, quantization, ())))


@pytest.mark.parametrize("quantization", FORMATS)
def test_compressed_tensors_reads_the_configuration(quantization):
    written = quantization_config(scheme_of(SHAPES, quantization, ()))
    read = QuantizationConfig.model_validate(written)
    args = read.config_groups["group_0"].weights
    assert args.symmetric and not args.dynamic
    assert args.num_bits == (4 if quantization == "int4" else 8)
    expected = {"int8": "channel", "fp8": "channel", "fp8_block": "block", "int4": "group"}
    assert args.strategy == expected[quantization]
    groups = [group.weights.group_size for group in read.config_groups.values()]
    # 160 input channels are five groups of 32, 256 are two of 128.
    assert groups == ([32, 128] if quantization == "int4" else [None])


def test_an_int4_group_size_for_each_width():
    groups = scheme_of(SHAPES, "int4", ()).groups
    assert groups["model.layers.0.self_attn.o_proj.weight"] == 128
    assert groups["model.layers.0.self_attn.q_proj.weight"] == 32


LINEAR = "model.layers.3.mlp.down_proj.weight"
OTHER = "model.layers.3.input_layernorm.weight"


def stream():
    torch.manual_seed(0)
    return [
        ("model.embed_tokens.weight", torch.randn(40, 32)),
        (LINEAR, 3 * torch.randn(500, 200)),
        (OTHER, torch.randn(32)),
    ]


def noised(scale=0.1, seed=7, version=4, dtype=torch.float32):
    weights = ((name, tensor.to(dtype)) for name, tensor in stream())
    return dict(WeightNoise(scale, seed).added(weights, version))


def test_it_is_a_share_of_the_root_mean_square_of_linear_weights_alone():
    clean, noisy = dict(stream()), noised()
    for name in ("model.embed_tokens.weight", OTHER):
        assert torch.equal(clean[name], noisy[name])
    error = (noisy[LINEAR] - clean[LINEAR]).double().numpy()
    rms = np.sqrt(np.mean(clean[LINEAR].double().numpy() ** 2))
    z = error / (0.1 * rms)
    # The moments of 100,000 normals, within five standard errors.
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / z.size)
    assert abs(np.corrcoef(z[:-1].ravel(), z[1:].ravel())[0, 1]) < 5 / np.sqrt(z.size)


def test_its_bits_depend_on_seed_version_and_tensor():
    one = noised()[LINEAR]
    assert torch.equal(one, noised()[LINEAR])
    assert not torch.equal(one, noised(seed=8)[LINEAR])
    assert not torch.equal(one, noised(version=5)[LINEAR])
    renamed = [("model.layers.4.mlp.down_proj.weight", stream()[1][1])]
    assert not torch.equal(one, dict(WeightNoise(0.1, 7).added(renamed, 4)).popitem()[1])


def test_it_is_the_counter_based_generators_noise():
    clean = torch.ones(3, 8)
    (_, noisy), *_ = WeightNoise(1.0, 7).added([(LINEAR, clean)], version=2)
    # The identifier is stated here again, so that runs made before stay reproducible.
    ident = int.from_bytes(hashlib.sha256(LINEAR.encode()).digest()[:7]) | 2**56
    rows = np.arange(3)
    z = reference_gaussian(NoiseKey(7, 2, 0).words(), 0, np.full(3, ident), rows, 8)
    np.testing.assert_allclose((noisy - clean).numpy(), z, atol=1e-5)


def test_it_keeps_the_dtype():
    assert noised(dtype=torch.bfloat16)[LINEAR].dtype == torch.bfloat16


class DividesByNumbers(TorchDispatchMode):
    """Collects the numbers by which a tensor is divided."""

    def __init__(self):
        super().__init__()
        self.numbers = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__.startswith("div"):
            self.numbers += [a for a in args[1:] if not isinstance(a, torch.Tensor)]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("quantization", FORMATS)
def test_scales_are_quotients_of_tensors(weights, quantization):
    """By a number, CUDA multiplies with its inverse: the scales, and then the codes, of a trainer
    on a GPU were not those that the first sync makes of the checkpoint on a CPU."""
    with DividesByNumbers() as division:
        torch.ones(2) / 3
        dict(quantized(weights.items(), scheme_of(SHAPES, quantization, ())))
    assert division.numbers == [3]
