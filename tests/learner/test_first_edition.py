"""A checkpoint that the first edition wrote, with Megatron-Core 0.16.1, goes on as it did there."""

import json
import tarfile
from pathlib import Path

import torch

from tests.learner.test_other_layouts import compare, run
from tests.support.layouts import some_trajectories
from tests.support.models import make_model

# Two steps at TP 2 of the model below; `next_three_steps.json` is what followed.
ARCHIVE = Path(__file__).parent / "data/checkpoint_of_megatron_0_16_1.tar.xz"
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
BOUND = 1e-4  # processors sum in different orders; where it was written it was bitwise


def test_it_goes_on(workers, tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    assert (tmp_path / "checkpoints/step_000002/state/common.pt").exists()  # 0.19 has none
    own = json.loads((tmp_path / "next_three_steps.json").read_text())
    for step in own:
        logprobs = step["logprobs"].items()
        step["logprobs"] = {int(sample): torch.tensor(values) for sample, values in logprobs}
    model = make_model(tmp_path / "model", seed=1, **SIZES)  # all weights come from the checkpoint
    arguments = {"run_dir": str(tmp_path), "trajectories": some_trajectories()}
    steps = run(workers, model, "tp2", "fully_reshardable", "load_and_go_on", arguments)
    print(f"largest difference of a log-probability {compare(steps, own, BOUND):.1e} nats")
