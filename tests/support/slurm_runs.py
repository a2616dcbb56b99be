"""What a run under Slurm has left so far, and waiting for more of it."""

from pathlib import Path

from tests.support.slurm_commands import status_file


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.glob("checkpoints/step_*"))


def log(run_dir: Path) -> str:
    """What the trainer's first node said."""
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
