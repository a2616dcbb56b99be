"""An array job with one member that fails, and a sweep that is submitted again."""

import csv
import re

import pytest

from tests.support.runs import QUICKSTART, REPO, records
from tests.support.slurm_commands import TINY, job_of, launch, status_file

pytestmark = pytest.mark.slurm

# The second cannot pass the check of the first weight sync.
SWEEP = """
sweep_dir: {sweep_dir}
base: {base}
set: {{trainer.steps: 1, model.tensor_model_parallel_size: 1, model.sequence_parallel: false}}
list:
  - {{rollout.gate_mean_abs_diff: 0.05}}
  - {{rollout.gate_mean_abs_diff: 1.0e-12}}
max_parallel: 1
"""


def test_an_array_whose_second_member_fails(slurm, tmp_path):
    root, config = tmp_path / "sweep", tmp_path / "sweep.yaml"
    config.write_text(SWEEP.format(sweep_dir=root, base=REPO / QUICKSTART))
    words = ["sweep", config, "--cluster", "configs/clusters/cpu.yaml", "cluster.nodes=1", *TINY]
    job = job_of(launch(slurm, *words))
    assert "2 members, 2 finished or running, 0 to launch" in launch(slurm, *words).stdout

    slurm.until(lambda: not slurm.ask("squeue", "--noheader"))
    states = [status_file(root / f"{index:04d}") for index in range(2)]
    assert [s["state"] for s in states] == ["finished", "failed"], states
    assert [s["job_id"] for s in states] == [f"{job}_0", f"{job}_1"]
    assert len(records(root / "0000")) == 1
    said = "".join(p.read_text() for p in root.glob("0001/launch/logs/node-0.*.log"))
    assert "rollout.gate_mean_abs_diff" in said

    again = launch(slurm, *words, "--dry-run").stdout
    assert "#SBATCH --array=1%1\n" in again
    table = launch(slurm, "results", root)
    assert table.returncode == 0, table.stderr
    with (root / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["state"], row["steps"]) for row in rows] == [("finished", "1"), ("failed", "0")]
    assert re.search(r"^0001 +1e-12 +failed", table.stdout, re.MULTILINE)


def test_a_waiting_sweep_is_cancelled(slurm, tmp_path):
    root, config = tmp_path / "sweep", tmp_path / "sweep.yaml"
    config.write_text(SWEEP.format(sweep_dir=root, base=REPO / QUICKSTART))
    words = ["sweep", config, "--cluster", "configs/clusters/cpu.yaml", "cluster.nodes=1", *TINY]
    slurm.ask("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    try:
        job = job_of(launch(slurm, *words))
        assert launch(slurm, "status", root).stdout.count(": submitted") == 2
        slurm.ask("scancel", job)
        slurm.until(lambda: not slurm.ask("squeue", "--noheader"))
    finally:
        slurm.ask("scontrol", "update", "PartitionName=cpu", "State=UP")
    assert launch(slurm, "status", root).stdout.count(": lost") == 2
    assert "#SBATCH --array=0,1%1\n" in launch(slurm, *words, "--dry-run").stdout
