"""Every kind of tensor, spoilt in every way that a sync has been known to go wrong, is named."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from alp_megatron.fp8.rounding import float32_scale, power_of_two_scale, round_rows, round_squares
from alp_megatron.rollout.engine import EngineError
from alp_megatron.rollout.vllm.receipt import Receipt
from alp_megatron.weights.quantize.scheme import Scheme, scheme_of
from alp_megatron.weights.quantize.stream import quantized
from alp_megatron.weights.transport import SharedBuffer, pack, unpack
from alp_megatron.weights.verify import (
    Digests,
    SyncError,
    check_against_checkpoint,
    check_codes_against_checkpoint,
    check_logprobs,
    check_rounded_against_checkpoint,
    check_same_tensors,
    check_version,
    digest,
)
from tests.support.fp8_reference import E4M3
from tests.support.runs import BASE_MODEL

Tensors = dict[str, torch.Tensor]
FORMATS = ("none", "int8", "fp8", "fp8_block", "int4")


class InMemory:
    """An HfTensors of given tensors."""

    model_dir = "base"

    def __init__(self, tensors: Tensors):
        self.tensor = tensors.__getitem__
        self._tensors = tensors

    def stream(self, dtype: torch.dtype):
        return ((name, tensor.to(dtype)) for name, tensor in self._tensors.items())


class Stream:
    """What is sent of a model: `tensors`; `stale`, what was sent before the last update."""

    def __init__(self, weights: Tensors, quantization: str):
        self.weights = weights
        self.shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        self.scheme: Scheme | None = None
        if quantization != "none":
            self.scheme = scheme_of(self.shapes, quantization, ())
            self.shapes = self.scheme.stored_shapes(self.shapes)
        self.tensors = dict(quantized(weights.items(), self.scheme))
        earlier = {n: (t.float() * 1.01 + 1e-3).to(t.dtype) for n, t in weights.items()}
        self.stale = dict(quantized(earlier.items(), self.scheme))


def flipped(bit: int) -> Callable[[Stream, str], Tensors]:
    """Of the last element; -1 is its highest bit, the sign."""

    def fault(stream: Stream, name: str) -> Tensors:
        copy = stream.tensors[name].clone()
        raw = copy.view(-1)[-1:].view(torch.uint8)
        at = bit % (8 * len(raw))
        raw[at // 8] ^= 1 << at % 8
        return stream.tensors | {name: copy}

    return fault


def swapped(stream: Stream, name: str) -> Tensors:
    """With another of the same shape, as when a layer number is off."""
    tensors, (dtype, shape) = stream.tensors, kind(stream.tensors[name])
    alike = (n for n, t in tensors.items() if n != name and kind(t) == (dtype, shape))
    other = next(alike, name)
    return tensors | {name: tensors[other], other: tensors[name]}


def kind(tensor: torch.Tensor) -> tuple:
    return tensor.dtype, tensor.shape


def shard_transposed(stream: Stream, name: str) -> Tensors:
    first, *rest = stream.tensors[name].chunk(2)
    if first.dim() < 2:
        return stream.tensors
    return stream.tensors | {name: torch.cat([first.t().reshape(first.shape), *rest])}


def shards_in_wrong_order(stream: Stream, name: str) -> Tensors:
    sound = stream.tensors[name]
    dim = 0 if sound.shape[0] > 1 else -1
    return stream.tensors | {name: torch.cat(sound.chunk(2, dim)[::-1], dim)}


def stale(stream: Stream, name: str) -> Tensors:
    return stream.tensors | {name: stream.stale[name]}


FAULTS = {
    "lowest bit": flipped(0),
    "sign": flipped(-1),
    "swapped": swapped,
    "shard transposed": shard_transposed,
    "shards in wrong order": shards_in_wrong_order,
    "stale": stale,
}


@pytest.fixture(scope="module", params=FORMATS)
def stream(request) -> Stream:
    weights = load_file(BASE_MODEL / "model.safetensors")
    if request.param != "none":  # two layers tell as much as four
        weights = {
            n: t for n, t in weights.items() if ".layers.2." not in n and ".layers.3." not in n
        }
    return Stream(weights, request.param)


def spoilt(stream: Stream, fault) -> dict[str, Tensors]:
    """{tensor: all tensors, that one spoilt}, where the fault changes anything at all."""
    cases = {}
    for name, sound in stream.tensors.items():
        tensors = fault(stream, name)
        if digest(tensors[name]) != digest(sound):
            cases[name] = tensors
    return cases


def codes_and_scales(stream: Stream) -> set[str]:
    """The names of all that stands for quantised weights."""
    if stream.scheme is None:
        return set()
    shapes = {name: tuple(stream.weights[name].shape) for name in stream.scheme.groups}
    return set(stream.scheme.stored_shapes(shapes))


@pytest.mark.parametrize("fault", FAULTS)
def test_every_kind_of_tensor_can_be_spoilt(stream, fault):
    cases = spoilt(stream, FAULTS[fault])
    assert len(cases) > len(stream.tensors) / 4
    if fault in ("lowest bit", "sign"):
        assert cases.keys() == stream.tensors.keys()
    elif fault in ("swapped", "stale", "shards in wrong order"):
        for name in codes_and_scales(stream):
            single = stream.tensors[name].numel() == 1 and fault == "shards in wrong order"
            assert name in cases or name.endswith("_shape") or single


def check_in_the_trainer(stream: Stream, sent: dict[str, str], of: Tensors) -> None:
    base, dtype = InMemory(of), torch.bfloat16
    if stream.scheme is None:
        check_against_checkpoint(sent, base, dtype)
    else:
        check_codes_against_checkpoint(sent, base, torch.float32, dtype, stream.scheme)


@pytest.mark.parametrize("fault", FAULTS)
def test_in_the_trainer(stream, fault):
    sound = {name: digest(tensor) for name, tensor in stream.tensors.items()}
    check_in_the_trainer(stream, sound, stream.weights)
    for name, tensors in spoilt(stream, FAULTS[fault]).items():
        base = {n: t for n, t in stream.weights.items() if name.startswith(n)}
        with pytest.raises(SyncError, match=f"tensor {name} "):
            check_in_the_trainer(stream, {name: digest(tensors[name])}, base)


@pytest.mark.parametrize("fault", FAULTS)
def test_on_the_way(stream, fault):
    """The buffer holds something else than what was packed: smaller than the largest tensor."""
    buffer = SharedBuffer.create(4096)
    sent = Digests()
    for _ in sent.record(stream.tensors.items()):
        pass
    for name, tensors in spoilt(stream, FAULTS[fault]).items():
        touched = {n: t for n, t in tensors.items() if t is not stream.tensors[n]}
        arrived = unpack(pack(touched.items(), buffer), buffer)
        received = sent.of | {name: digest(tensor) for name, tensor in arrived}
        assert name in touched
        with pytest.raises(SyncError) as caught:
            check_same_tensors(sent.of, received)
        assert any(f"tensor {n} " in str(caught.value) for n in touched)
    buffer.close()


@pytest.mark.parametrize("fault", ["missing", "renamed", "twice", "transposed"])
def test_at_the_engine(stream, fault):
    tensors = stream.tensors
    for name, tensor in tensors.items():
        if fault == "transposed" and (tensor.dim() < 2 or tensor.shape[0] == tensor.shape[1]):
            continue
        came = {
            "missing": [(n, t) for n, t in tensors.items() if n != name],
            "renamed": [(n + "_" if n == name else n, t) for n, t in tensors.items()],
            "twice": [*tensors.items(), (name, tensor)],
            "transposed": [(n, t.t() if n == name else t) for n, t in tensors.items()],
        }[fault]
        with pytest.raises(EngineError, match=f"tensor {name}"):
            for _ in Receipt(stream.shapes, tied=False, with_digests=False).whole(came):
                pass


def test_a_stale_version():
    check_version({3}, 3)
    with pytest.raises(SyncError, match="version 3 was sent.* under version 2"):
        check_version({2, 3}, 3)


NAME = "model.layers.0.mlp.up_proj.weight"


def weight() -> torch.Tensor:
    """Sizes over six orders of magnitude: also what E4M3 rounds to its smallest numbers and 0."""
    generator = torch.Generator().manual_seed(1)
    sizes = 10 ** torch.empty(256, 384).uniform_(-6, 0, generator=generator)
    return torch.randn(256, 384, generator=generator) * sizes


def check(exported: torch.Tensor) -> None:
    base = SimpleNamespace(tensor={NAME: weight()}.__getitem__, model_dir="base")
    check_rounded_against_checkpoint(NAME, exported, base)


@pytest.mark.parametrize("size, rule", [(384, float32_scale), (128, power_of_two_scale)])
def test_rounding_passes(size, rule):
    rounding = round_squares if size == 128 else round_rows
    rounded = rounding(weight(), size, E4M3, rule)
    assert (rounded == 0).any() and (rounded != weight()).any()
    check(rounded)
    check(rounded.bfloat16())


@pytest.mark.parametrize("spoilt", [lambda w: w.flip(0), lambda w: w * 1.08, lambda w: w + 1e-4])
def test_more_than_rounding_is_told_by_name(spoilt):
    with pytest.raises(SyncError, match=f"tensor {NAME} as exported by the trainer differs"):
        check(spoilt(weight()))


def test_one_element_is_enough():
    exported = weight()
    exported[17, 300] = float("nan")
    with pytest.raises(SyncError, match=NAME):
        check(exported)


def test_the_gate_is_on_the_mean():
    trainer = [[-1.0] * 50, [-2.0] * 49 + [-4.0]]
    one_token = [[-1.0] * 50, [-2.0] * 50]
    agreement = check_logprobs(trainer, one_token, limit=0.05)
    assert agreement["mean_abs_diff"] == pytest.approx(0.02)
    assert agreement["max_abs_diff"] == 2
    assert agreement["k3"] == pytest.approx((2.718281828**-2 + 2 - 1) / 100)
    for wrong in (-1.1, float("nan")):
        with pytest.raises(SyncError, match="gate_mean_abs_diff"):
            check_logprobs(trainer, [[wrong] * 50, [-2.0] * 50], limit=0.02)
