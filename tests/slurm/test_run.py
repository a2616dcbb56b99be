"""One run over two nodes, with everything that may happen to it."""

import pytest

from tests.support.runs import QUICKSTART, records
from tests.support.slurm_commands import TINY, job_of, launch, status_file
from tests.support.slurm_runs import go_on, until_a_new_checkpoint, until_said

pytestmark = pytest.mark.slurm


def test_a_node_dies_the_time_ends_the_user_cancels(slurm, tmp_path):
    run_dir = tmp_path / "a run"
    words = [QUICKSTART, "--cluster", "configs/clusters/cpu.yaml", f"run_dir={run_dir}"]
    words += [*TINY, "trainer.steps=1000000"]
    job = job_of(launch(slurm, "submit", *words))
    until_a_new_checkpoint(slurm, job, run_dir)
    assert "nodes n[1-2]" in launch(slurm, "status", run_dir).stdout
    ranks = {p.environ()["RANK"]: p for p in slurm.processes(job) if "RANK" in p.environ()}
    nodes = {rank: p.environ()["SLURMD_NODENAME"] for rank, p in ranks.items()}
    assert nodes == {"0": "n1", "1": "n2"}
    refused = launch(slurm, "submit", *words)
    assert refused.returncode == 2 and f"belongs to job {job}" in refused.stderr

    slurm.kill_node("n2", job)
    slurm.until(lambda: slurm.state(job) == "PENDING")
    assert ": requeued" in launch(slurm, "status", run_dir).stdout
    slurm.until(lambda: not slurm.processes(job))
    go_on(slurm, job, run_dir, restarts=1)
    others = slurm.ask("scontrol", "show", "hostnames", status_file(run_dir)["nodes"]).split()
    assert len(others) == 2 and "n2" not in others

    # As Slurm does before the time limit: the batch shell alone gets the signal.
    slurm.ask("scancel", "--batch", "--signal=USR1", job)
    until_said(slurm, job, run_dir, "stopped after step", times=1)
    go_on(slurm, job, run_dir, restarts=2)

    slurm.ask("scancel", job)
    slurm.until(lambda: slurm.state(job) == "CANCELLED")
    slurm.until(lambda: not slurm.processes(job))
    slurm.until(lambda: status_file(run_dir)["state"] == "cancelled")
    steps = [record["step"] for record in records(run_dir)]
    assert steps == list(range(len(steps)))
    assert f"{run_dir}: cancelled, job {job}, restarts 2" in launch(slurm, "status", run_dir).stdout
