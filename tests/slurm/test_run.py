"""One run over two nodes, with everything that may happen to it."""

import pytest

from tests.e2e.runs import QUICKSTART, records
from tests.slurm.commands import TINY, job_of, launch, status_file

pytestmark = pytest.mark.slurm


def checkpoints(run_dir) -> list[str]:
    return sorted(path.name for path in run_dir.glob("checkpoints/step_*"))


def log(run_dir) -> str:
    """What the first node said."""
    return "".join(path.read_text() for path in run_dir.glob("launch/logs/node-0.*.log"))


def until_said(slurm, job, run_dir, text, times):
    def said():
        return log(run_dir).count(text) >= times or slurm.state(job) in ("FAILED", "COMPLETED")

    slurm.until(said)
    assert log(run_dir).count(text) == times, log(run_dir)


def until_a_new_checkpoint(slurm, job, run_dir):
    before = checkpoints(run_dir)
    slurm.until(lambda: checkpoints(run_dir)[-1:] > before[-1:] or slurm.state(job) == "FAILED")
    assert slurm.state(job) == "RUNNING", log(run_dir)


def go_on(slurm, job, run_dir, restarts):
    """A requeued job begins again, and resumes from the last checkpoint."""
    slurm.start_now(job)
    last = int(checkpoints(run_dir)[-1][5:])
    until_said(slurm, job, run_dir, "resumed after step", times=restarts)
    assert f"resumed after step {last}\n" in log(run_dir)
    assert status_file(run_dir)["restarts"] == restarts
    until_a_new_checkpoint(slurm, job, run_dir)


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
    assert status_file(run_dir)["nodes"] == "n[1,3]"

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
