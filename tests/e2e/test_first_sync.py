"""One bit of one tensor, changed before the first sync, is caught and the tensor is named."""

import os
from pathlib import Path

import pytest

from tests.support.marks import slow
from tests.support.runs import QUIET, Command, the_sentence, train_arguments

INJECT = Path(__file__).parents[1] / "support" / "inject"

# where the bit changes -> the tensor that the message must name
FLIPS = {
    # The lowest bit of an fp32 parameter: the cast to the rollout's bf16 would hide it.
    "trainer decoder.layers.2.mlp.linear_fc2.weight 0": "model.layers.2.mlp.down_proj.weight",
    "transport model.layers.1.self_attn.k_proj.bias": "model.layers.1.self_attn.k_proj.bias",
}


@pytest.mark.parametrize("flip", [slow(flip) if "trainer" in flip else flip for flip in FLIPS])
def test_the_run_ends_and_names_the_tensor(tmp_path, flip):
    path = os.pathsep.join(filter(None, [str(INJECT), os.environ.get("PYTHONPATH")]))
    arguments = train_arguments(tmp_path / "run", 1, *QUIET)
    command = Command(tmp_path, *arguments, PYTHONPATH=path, ALP_TEST_FLIP=flip)
    try:
        assert command.wait() == 1, command.text()
        sentence = the_sentence(command)
        assert "first weight sync" in sentence and f"tensor {FLIPS[flip]} " in sentence
        assert not (tmp_path / "run" / "metrics.jsonl").read_text()
        command.check_nothing_is_left()
    finally:
        command.end()
