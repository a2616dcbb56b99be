"""Slurm itself reads the script of every configuration in the repository."""

import subprocess

import pytest
import yaml

from tests.e2e.runs import QUICKSTART, REPO
from tests.slurm.commands import launch

pytestmark = pytest.mark.slurm

CLUSTERS = sorted(path.relative_to(REPO) for path in REPO.glob("configs/clusters/*.yaml"))
SWEEPS = sorted(path.relative_to(REPO) for path in REPO.glob("configs/sweeps/*.yaml"))
# What warm-start reads is no run of `train`, but has its form.
RUNS = [QUICKSTART, *sorted(p.relative_to(REPO) for p in REPO.glob("configs/experiments/*.yaml"))]


def test_only(slurm, script: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["sbatch", "--test-only"],
        input=script,
        env=slurm.environment,
        capture_output=True,
        text=True,
    )


test_only.__test__ = False


def script_of(slurm, *words) -> str:
    answer = launch(slurm, *words, "--dry-run")
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize("cluster", CLUSTERS, ids=str)
def test_runs_and_sweeps_are_accepted(slurm, tmp_path, cluster):
    # The example of GPUs has more processes than the small batches of these runs divide.
    gpus = yaml.safe_load((REPO / cluster).read_text()).get("gpus_per_node")
    words = ["--cluster", cluster, *(["cluster.processes_per_node=1"] if gpus else [])]
    scripts = [script_of(slurm, "submit", c, *words, f"run_dir={tmp_path}/r") for c in RUNS]
    scripts += [script_of(slurm, "sweep", config, *words) for config in SWEEPS]
    for script in scripts:
        answer = test_only(slurm, script)
        assert answer.returncode == 0 and "to start at" in answer.stderr, answer.stderr


def test_what_the_cluster_has_not_is_refused(slurm, tmp_path):
    words = ["submit", QUICKSTART, "--cluster", CLUSTERS[0], f"run_dir={tmp_path}/r"]
    answer = launch(slurm, *words, "cluster.partition=nowhere")
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: sbatch refused") and "partition" in answer.stderr
