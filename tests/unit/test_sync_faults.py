"""Every tensor, spoilt in every way that a sync has been known to go wrong, is caught by name."""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from alp_megatron.rollout.engine import EngineError
from alp_megatron.rollout.weight_stream import checked
from alp_megatron.weights.digest import digest
from alp_megatron.weights.transport import SharedBuffer, pack, unpack
from alp_megatron.weights.verify import (
    Digests,
    SyncError,
    check_against_checkpoint,
    check_same_tensors,
    check_version,
)
from tests.e2e.runs import BASE_MODEL

Tensors = dict[str, torch.Tensor]


class InMemory:
    """A Checkpoint of given tensors."""

    model_dir = "base"

    def __init__(self, tensors: Tensors):
        self.tensor = tensors.__getitem__


def flipped(bit: int) -> Callable[[Tensors, str], Tensors]:
    def fault(tensors: Tensors, name: str) -> Tensors:
        copy = tensors[name].clone()
        copy.view(-1)[-1:].view(torch.uint8)[bit // 8] ^= 1 << bit % 8
        return tensors | {name: copy}

    return fault


def swapped(tensors: Tensors, name: str) -> Tensors:
    """With another of the same shape, as when a layer number is off."""
    shape = tensors[name].shape
    other = next((n for n, t in tensors.items() if n != name and t.shape == shape), name)
    return tensors | {name: tensors[other], other: tensors[name]}


def shard_transposed(tensors: Tensors, name: str) -> Tensors:
    first, *rest = tensors[name].chunk(2)
    return tensors | {name: torch.cat([first.t().reshape(first.shape), *rest])}


def shards_in_wrong_order(tensors: Tensors, name: str) -> Tensors:
    return tensors | {name: torch.cat(tensors[name].chunk(2)[::-1])}


def stale(tensors: Tensors, name: str) -> Tensors:
    """What it was before the last update, which moved it by a little."""
    return tensors | {name: (tensors[name].float() * 1.01 + 1e-3).to(tensors[name].dtype)}


FAULTS = {
    "lowest bit": flipped(0),
    "sign": flipped(15),
    "swapped": swapped,
    "shard transposed": shard_transposed,
    "shards in wrong order": shards_in_wrong_order,
    "stale": stale,
}


@pytest.fixture(scope="module")
def weights() -> Tensors:
    return load_file(BASE_MODEL / "model.safetensors")


def spoilt(weights: Tensors, fault) -> dict[str, Tensors]:
    """{tensor: all tensors, that one spoilt}, where the fault changes anything at all."""
    cases = {}
    for name in weights:
        if fault is shard_transposed and weights[name].dim() < 2:
            continue
        tensors = fault(weights, name)
        if not torch.equal(tensors[name], weights[name]):
            cases[name] = tensors
    return cases


@pytest.mark.parametrize("kind", FAULTS)
def test_in_the_trainer(weights, kind):
    base = InMemory(weights)
    sound = {name: digest(tensor) for name, tensor in weights.items()}
    check_against_checkpoint(sound, base, torch.bfloat16)
    cases = spoilt(weights, FAULTS[kind])
    assert len(cases) > len(weights) / 3
    for name, tensors in cases.items():
        sent = {name: digest(tensors[name])}
        with pytest.raises(SyncError, match=f"tensor {name} "):
            check_against_checkpoint(sound | sent, base, torch.bfloat16)


@pytest.mark.parametrize("kind", FAULTS)
def test_on_the_way(weights, kind):
    """The buffer holds something else than what was packed: smaller than the largest tensor."""
    buffer = SharedBuffer.create(4096)
    for name, tensors in spoilt(weights, FAULTS[kind]).items():
        sent = Digests()
        for _ in sent.record(weights.items()):
            pass
        arrived = unpack(pack(tensors.items(), buffer), buffer)
        received = {name: digest(tensor) for name, tensor in arrived}
        touched = {n for n in weights if tensors[n] is not weights[n]}
        assert name in touched
        with pytest.raises(SyncError) as caught:
            check_same_tensors(sent.of, received)
        assert any(f"tensor {n} " in str(caught.value) for n in touched)
    buffer.close()


@pytest.mark.parametrize("kind", ["missing", "renamed", "twice", "transposed"])
def test_at_the_engine(weights, kind):
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name, tensor in weights.items():
        if kind == "transposed" and (tensor.dim() < 2 or tensor.shape[0] == tensor.shape[1]):
            continue
        stream = {
            "missing": [(n, t) for n, t in weights.items() if n != name],
            "renamed": [(n + "_" if n == name else n, t) for n, t in weights.items()],
            "twice": [*weights.items(), (name, tensor)],
            "transposed": [(n, t.t() if n == name else t) for n, t in weights.items()],
        }[kind]
        with pytest.raises(EngineError, match=f"tensor {name}"):
            for _ in checked(stream, shapes, optional=frozenset()):
                pass


def test_a_stale_version():
    check_version({3}, 3)
    with pytest.raises(SyncError, match="version 3 was sent.* under version 2"):
        check_version({2, 3}, 3)
