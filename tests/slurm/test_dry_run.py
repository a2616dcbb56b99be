"""Slurm itself reads the script of every configuration in the repository.

Not those in configs/comparisons: `alp-megatron compare` runs on the machine where it is typed.
"""

import re
import subprocess

import pytest
import yaml

from alp_megatron.cli import main
from alp_megatron.config.layout import world_size
from alp_megatron.config.load import load_config
from tests.support.repository_configs import CONFIGS, RUN_FILES, SWEEP_FILES
from tests.support.runs import QUICKSTART, REPO
from tests.support.slurm_commands import launch

pytestmark = pytest.mark.slurm

H100 = "configs/clusters/pyxis_h100.yaml"
CLUSTERS = sorted(
    path.relative_to(REPO).as_posix() for path in REPO.glob("configs/clusters/*.yaml")
)
# A copy of the whole model is not here, its config.json is.
ONLY_THERE = {"configs/sweeps/multi_node.yaml": "model.path=configs/models/qwen2.5-7b"}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPO)


def script_of(capsys, *words) -> str:
    assert main(["launch", *map(str, words), "--dry-run"]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def planned(slurm, script: str) -> re.Match:
    """What Slurm would do with it now: how many processors it would take, and where."""
    answer = subprocess.run(
        ["sbatch", "--test-only"],
        input=script,
        env=slurm.environment,
        capture_output=True,
        text=True,
    )
    pattern = r"to start at \S+ using (\d+) processors on (?:nodes )?(\S+)"
    found = re.search(pattern, answer.stderr)
    assert answer.returncode == 0 and found, answer.stderr
    return found


def on_h100s(name: str) -> list[str]:
    """The cluster with as many GPUs as the run has processes, 8 on a node."""
    world = world_size(load_config(REPO / name))
    sizes = [f"cluster.nodes={-(-world // 8)}", f"cluster.gpus_per_node={min(world, 8)}"]
    return ["--cluster", H100, *sizes]


@pytest.mark.parametrize("name", RUN_FILES)
def test_every_run_is_accepted_on_its_gpus(slurm, name, capsys):
    script = script_of(capsys, "submit", name, *on_h100s(name))
    nodes = int(re.search(r"--nodes=(\d+)", script)[1])
    assert int(planned(slurm, script)[1]) == 96 * nodes


@pytest.mark.parametrize("name", SWEEP_FILES)
def test_every_sweep_is_accepted_on_its_gpus(slurm, name, capsys):
    base = CONFIGS / "sweeps" / yaml.safe_load((REPO / name).read_text())["base"]
    words = ["sweep", name, *on_h100s(base.resolve().relative_to(REPO).as_posix())]
    planned(slurm, script_of(capsys, *words, *filter(None, [ONLY_THERE.get(name)])))


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_every_cluster_is_accepted(slurm, cluster, capsys):
    settings = yaml.safe_load((REPO / cluster).read_text())
    # The quickstart's batches are small: fewer processes than the GPUs of two nodes.
    words = ["cluster.processes_per_node=1"] if "cpu" not in cluster else []
    words += ["rollout.transport=directory"] if "rollout" in settings else []
    script = script_of(capsys, "submit", QUICKSTART, "--cluster", cluster, *words)
    assert ("#SBATCH hetjob\n" in script) == ("rollout" in settings)
    planned(slurm, script)


def test_a_large_run_with_rollout_nodes_is_accepted(slurm, capsys):
    name = "configs/models/qwen3-235b-a22b/256xh100.yaml"
    words = ["cluster.rollout.nodes=4", "rollout.transport=nccl"]
    script = script_of(capsys, "submit", name, *on_h100s(name), *words)
    assert script.count("#SBATCH --gpus-per-node=8\n") == 2
    assert int(planned(slurm, script)[1]) == 96 * (32 + 4)


def test_what_the_cluster_has_not_is_refused(slurm, tmp_path):
    words = ["submit", QUICKSTART, "--cluster", CLUSTERS[0], f"run_dir={tmp_path}/r"]
    answer = launch(slurm, *words, "cluster.partition=nowhere")
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: sbatch refused") and "partition" in answer.stderr
