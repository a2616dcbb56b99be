"""Trainer and rollout servers on nodes of their own: a heterogeneous job."""

import os
import signal

import psutil
import pytest

from tests.support.runs import QUICKSTART, records
from tests.support.slurm_commands import TINY, job_of, launch, status_file
from tests.support.slurm_runs import go_on, log, until_a_new_checkpoint

pytestmark = pytest.mark.slurm


def submit(slurm, run_dir, *more) -> str:
    words = [QUICKSTART, "--cluster", "configs/clusters/cpu.yaml", f"run_dir={run_dir}", *TINY]
    return job_of(launch(slurm, "submit", *words, "rollout.transport=directory", *more))


def servers(slurm, job) -> dict[str, psutil.Process]:
    """Each node's vLLM server."""
    found = [
        p for p in slurm.processes(job) if "alp_megatron.rollout.server.process" in p.cmdline()
    ]
    return {p.environ()["SLURMD_NODENAME"]: p for p in found}


def server_log(run_dir, index) -> str:
    """What the rollout node of this number said; all nodes are one host here."""
    return "".join(path.read_text() for path in run_dir.glob(f"launch/logs/rollout-{index}.*.log"))


def test_a_server_dies_a_node_dies_the_run_ends(slurm, tmp_path):
    run_dir = tmp_path / "a run"
    job = submit(slurm, run_dir, "cluster.rollout.nodes=2", "trainer.steps=1000000")
    until_a_new_checkpoint(slurm, job, run_dir)
    status = launch(slurm, "status", run_dir).stdout
    assert f": running, job {job}, nodes n[1-2] + n[3-4], step" in status
    ranks = [p.environ() for p in slurm.processes(job) if "RANK" in p.environ()]
    assert {e["RANK"]: e["SLURMD_NODENAME"] for e in ranks} == {"0": "n1", "1": "n2"}
    assert servers(slurm, job).keys() == {"n3", "n4"}

    servers(slurm, job)["n4"].send_signal(signal.SIGKILL)
    slurm.until(lambda: server_log(run_dir, 1).count("serving ") == 2)
    until_a_new_checkpoint(slurm, job, run_dir)
    assert "is lost" in log(run_dir) and status_file(run_dir)["restarts"] == 0

    slurm.kill_node("n3", job)
    slurm.until(lambda: slurm.state(job) == "PENDING")
    slurm.start_node("n3")
    go_on(slurm, job, run_dir, restarts=1)

    (run_dir / "stop").touch()
    slurm.until(lambda: slurm.state(job) == "COMPLETED")
    assert status_file(run_dir)["state"] == "stopped"
    slurm.until(lambda: not slurm.processes(job))
    steps = [record["step"] for record in records(run_dir)]
    assert steps == list(range(len(steps)))


def test_cancelled_while_the_servers_start(slurm, tmp_path):
    run_dir, shared_memory = tmp_path / "run", set(os.listdir("/dev/shm"))
    job = submit(slurm, run_dir, "cluster.rollout.nodes=1")
    slurm.until(lambda: servers(slurm, job))
    slurm.ask("scancel", job)
    slurm.until(lambda: slurm.state(job) == "CANCELLED")
    slurm.until(lambda: status_file(run_dir)["state"] == "cancelled")
    slurm.until(lambda: not slurm.processes(job))
    assert set(os.listdir("/dev/shm")) <= shared_memory


def test_a_server_that_cannot_start_fails_the_job(slurm, tmp_path):
    """It is not tried for ever, and its log says why."""
    run_dir = tmp_path / "run"
    job = submit(slurm, run_dir, "cluster.rollout.nodes=1", "runtime.device=cuda")
    slurm.until(lambda: slurm.state(job) == "FAILED")
    assert status_file(run_dir)["state"] == "failed"
    assert server_log(run_dir, 0).count("error: ") == 1, server_log(run_dir, 0)
    assert "runtime.device=cuda" in server_log(run_dir, 0)
