"""The script of a heterogeneous job, and what belongs to it."""

import subprocess

import pytest

from alp_megatron.cli import main
from alp_megatron.config.load import load_config
from alp_megatron.errors import UserError
from alp_megatron.launch.cluster import load_cluster, render
from alp_megatron.launch.rollout_server import own_gpu
from alp_megatron.launch.run_config import run_config
from alp_megatron.launch.status import active_jobs
from tests.support.batch_scripts import CPU, H100, QUICKSTART, bash_accepts, directives


def components(script: str) -> list[dict[str, str]]:
    """The options of each."""
    return [directives(part) for part in script.split("#SBATCH hetjob\n")]


def test_the_second_component_has_its_own_resources(tmp_path):
    words = ["rollout={nodes: 3, partition: other, constraint: h200, cpus_per_node: 64}"]
    script = render(load_cluster(H100, [*words, "qos=high", "constraint=h100"]), tmp_path)
    trainer, rollout = components(script)
    assert (trainer["partition"], trainer["constraint"], trainer["nodes"]) == ("gpu", "h100", "2")
    assert (trainer["ntasks-per-node"], trainer["cpus-per-task"]) == ("1", "96")
    assert rollout == {
        "partition": "other",
        "account": "research",
        "qos": "high",
        "constraint": "h200",
        "nodes": "3",
        "ntasks-per-node": "8",
        "gpus-per-node": "8",
        "cpus-per-task": "8",
        "time": "24:00:00",
        "requeue": "",
    }
    assert script.count("--container-image=/shared/images/alp-megatron.sqsh") == 2
    assert bash_accepts(script)


def test_what_the_rollout_nodes_do_not_say_is_the_trainers(tmp_path):
    _, rollout = components(render(load_cluster(H100, ["rollout.nodes=1"]), tmp_path))
    assert (rollout["partition"], rollout["gpus-per-node"]) == ("gpu", "8")
    _, rollout = components(render(load_cluster(CPU, ["rollout.nodes=1"]), tmp_path))
    assert rollout["ntasks-per-node"] == "1" and "gpus-per-node" not in rollout


def test_one_component_without_rollout_nodes(tmp_path):
    script = render(load_cluster(CPU, []), tmp_path)
    assert "het" not in script and "server" not in script


def test_the_trainer_gets_every_servers_address(tmp_path):
    """The script's own lines, with two nodes of 8 GPUs that `scontrol` names."""
    script = render(load_cluster(H100, ["rollout.nodes=2"]), tmp_path)
    lines = script.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("server_port="))
    end = next(i for i, line in enumerate(lines) if line == "done")
    address_of = next(line for line in lines if line.startswith("address_of()"))
    scontrol = """scontrol() {
      case $2 in hostnames) printf 'a\\nb\\n';; node) echo "Node=$3 NodeAddr=$3.net Port=1";; esac
    }"""
    shell = ["SLURM_JOB_ID=1000", scontrol, address_of, *lines[start : end + 1], 'echo "$urls"']
    said = subprocess.run(["bash", "-c", "\n".join(shell)], capture_output=True, text=True).stdout
    urls = load_config(QUICKSTART, [f"rollout.server_urls=[{said.strip()}]"]).rollout.server_urls
    first = 10000 + 1000 * 16 % 9000
    ports = range(first, first + 8), range(first + 8, first + 16)
    assert urls == [
        f"http://{n}.net:{port}" for n, of in zip("ab", ports, strict=True) for port in of
    ]


def test_the_run_samples_from_the_jobs_servers():
    words = ["rollout.transport=directory", "rollout.num_servers=8", "rollout.engine=server"]
    config = run_config(QUICKSTART, words, load_cluster(CPU, ["rollout.nodes=1"]))
    assert (config.rollout.engine, config.rollout.num_servers) == ("server", 1)


@pytest.mark.parametrize("transport", ["shared_memory", "cuda_ipc"])
def test_weights_that_cannot_leave_the_machine(transport):
    cluster = load_cluster(CPU, ["rollout.nodes=1"])
    with pytest.raises(UserError, match=f"rollout.transport={transport} does not leave"):
        run_config(QUICKSTART, [f"rollout.transport={transport}"], cluster)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["rollout.partition='a b'"], "rollout.partition is 'a b'"),
        (["rollout.cpus_per_node=4"], "rollout.cpus_per_node=4 is less than one for each of"),
        (["rollout.gpus=4"], "Unknown key rollout.gpus"),
    ],
)
def test_bad_rollout_nodes_are_one_sentence(words, sentence):
    with pytest.raises(UserError) as caught:
        load_cluster(H100, words)
    assert sentence in str(caught.value)


def test_a_sweep_is_no_heterogeneous_job(capsys):
    words = ["launch", "sweep", "configs/sweeps/layer_range.yaml", "--cluster", CPU]
    assert main([*words, "cluster.rollout.nodes=1", "--dry-run"]) == 2
    assert "Slurm has no arrays of those" in capsys.readouterr().err


def test_a_server_has_one_of_its_nodes_gpus():
    given = {"CUDA_VISIBLE_DEVICES": "4,5,6", "SLURM_LOCALID": "2"}
    assert own_gpu(given) == {"CUDA_VISIBLE_DEVICES": "6"}
    assert own_gpu({"SLURM_LOCALID": "0"}) == {}


def test_a_heterogeneous_job_is_one_job(tmp_path, monkeypatch):
    """`squeue` lists its components, in no order."""
    squeue = tmp_path / "squeue"
    said = "12+1 PENDING\n12+0 RUNNING\n13_2 PENDING\n7 RUNNING"
    squeue.write_text(f"#!/bin/sh\necho '{said}'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert active_jobs() == {"12": "RUNNING", "13_2": "PENDING", "7": "RUNNING"}
