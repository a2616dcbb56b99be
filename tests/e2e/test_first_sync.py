"""One bit of one tensor, changed before the first sync, is caught and the tensor is named."""

from pathlib import Path

import pytest

from alp_megatron.weights.verify import SyncError, check_logprobs
from tests.support.runs import QUIET, Command, the_sentence, train_arguments

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
