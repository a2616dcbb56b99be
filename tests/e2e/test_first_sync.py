"""One bit of one tensor, changed before the first sync, is caught and the tensor is named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alp_megatron.weights.digest import digest
from alp_megatron.weights.transport import SharedBuffer, pack, unpack
from alp_megatron.weights.verify import (
    Digests,
    SyncError,
    check_against_checkpoint,
    check_logprobs,
    check_same_tensors,
)
from tests.e2e.runs import BASE_MODEL, QUIET, Command, the_sentence, train_arguments

INJECT = Path(__file__).parent / "inject"

# where the bit changes -> the tensor that the message must name
FLIPS = {
    # The lowest bit of an fp32 parameter: the cast to the rollout's bf16 would hide it.
    "trainer decoder.layers.2.mlp.linear_fc2.weight 0": "model.layers.2.mlp.down_proj.weight",
    "trainer decoder.layers.3.self_attention.linear_proj.weight 31": (
        "model.layers.3.self_attn.o_proj.weight"
    ),
    "transport model.layers.1.self_attn.k_proj.bias": "model.layers.1.self_attn.k_proj.bias",
}


def test_the_run_ends_and_names_the_tensor(tmp_path):
    commands = {
        flip: Command(
            tmp_path,
            *train_arguments(tmp_path / f"run-{index}", 1, *QUIET),
            PYTHONPATH=str(INJECT),
            ALP_TEST_FLIP=flip,
        )
        for index, flip in enumerate(FLIPS)
    }
    try:
        for index, (flip, command) in enumerate(commands.items()):
            assert command.wait() == 1, command.text()
            sentence = the_sentence(command)
            assert "first weight sync" in sentence and f"tensor {FLIPS[flip]} " in sentence
            assert not (tmp_path / f"run-{index}" / "metrics.jsonl").read_text()
            command.check_nothing_is_left()
    finally:
        for command in commands.values():
            command.end()


@pytest.fixture(scope="module")
def weights():
    return load_file(BASE_MODEL / "model.safetensors")


def flipped(tensor, bit):
    """A copy in which one bit of one element differs."""
    copy = tensor.clone()
    raw = copy.view(-1)[-1:].view(torch.uint8)
    raw[bit // 8] ^= 1 << bit % 8
    return copy


class InMemory:
    """A Checkpoint of given tensors."""

    model_dir = "base"

    def __init__(self, tensors):
        self.tensor = tensors.__getitem__


@pytest.mark.parametrize("bit", [0, 15])
def test_every_tensor_is_watched(weights, bit):
    sent = {name: digest(tensor) for name, tensor in weights.items()}
    base = InMemory(weights)
    check_against_checkpoint(sent, base, torch.bfloat16)
    for name, tensor in weights.items():
        changed = sent | {name: digest(flipped(tensor, bit))}
        with pytest.raises(SyncError, match=f"tensor {name} "):
            check_against_checkpoint(changed, base, torch.bfloat16)


def test_every_tensor_is_watched_on_the_way(weights):
    # Smaller than the largest tensor: that one travels in pieces.
    buffer = SharedBuffer.create(4096)
    sent = Digests()

    def disturbed(buckets, target):
        for bucket in buckets:
            for piece in bucket:
                if piece.name == target and piece.last:
                    buffer.view(piece)[-1:].view(torch.uint8)[0] ^= 1
            yield bucket

    for target in [None, *weights]:
        buckets = pack(sent.record(weights.items()), buffer)
        arrived = unpack(disturbed(buckets, target), buffer)
        received = {name: digest(tensor) for name, tensor in arrived}
        if target is None:
            check_same_tensors(sent.of, received)
            continue
        with pytest.raises(SyncError, match=f"tensor {target} "):
            check_same_tensors(sent.of, received)
    buffer.close()


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
