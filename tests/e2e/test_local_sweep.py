"""A sweep without Slurm: one run after the other; the second cannot pass its first sync's check."""

import json

import pytest

from tests.support.runs import QUICKSTART, QUIET, REPO, SMALL, records, run

SWEEP = """
sweep_dir: {sweep_dir}
base: {base}
set: {{trainer.steps: 1, model.tensor_model_parallel_size: 1, model.sequence_parallel: false}}
list:
  - {{rollout.gate_mean_abs_diff: 0.05}}
  - {{rollout.gate_mean_abs_diff: 1.0e-12}}
"""


@pytest.mark.slow
def test_one_member_fails_and_the_finished_one_is_left_alone(tmp_path):
    root, config = tmp_path / "sweep", tmp_path / "sweep.yaml"
    config.write_text(SWEEP.format(sweep_dir=root, base=REPO / QUICKSTART))
    words = ["launch", "sweep", config, "--local", *SMALL, *QUIET]
    first = run(tmp_path, *words)
    assert first.process.returncode == 1, first.text()
    assert "1 of 2 members failed: 'gate_mean_abs_diff=1e-12'" in first.err
    states = [
        json.loads((root / f"{index:04d}" / "launch" / "status.json").read_text())["state"]
        for index in range(2)
    ]
    assert states == ["finished", "failed"] and len(records(root / "0000")) == 1
    again = run(tmp_path, *words, "--dry-run")
    assert again.out == "gate_mean_abs_diff=1e-12\n"
