"""How a run stands: its status file, what Slurm says of its job, and its last step."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from alp_megatron.config.run_dir import LAUNCH_DIR
from alp_megatron.diagnostics.files import write_atomic
from alp_megatron.diagnostics.metrics_file import read_metrics
from alp_megatron.errors import UserError
from launch.slurm import active_jobs

# Slurm has the job still, or should.
EXPECTED = ("submitted", "running", "stopping", "requeued")
_EMPTY = {"job_id": None, "restarts": 0, "nodes": None, "exit_code": None}


def write_status(run_dir: Path, state: str, **values) -> None:
    """`launch/status.json`; the batch script writes the same from inside of the job."""
    record = {"state": state} | _EMPTY | values | {"time": f"{datetime.now(UTC):%FT%TZ}"}
    write_atomic(run_dir / LAUNCH_DIR / "status.json", (json.dumps(record) + "\n").encode())


def known_jobs(run_dirs: Iterable[Path]) -> dict[str, str]:
    """Slurm's jobs; it is asked only where one of the runs had a job."""
    return active_jobs() if any(_read(run_dir)["job_id"] for run_dir in run_dirs) else {}


def read_status(run_dir: Path, jobs: dict[str, str]) -> dict:
    """The status file with Slurm's word on it.

    `active` tells whether Slurm has the job; a state that needs one which it has not is `lost`,
    a job cancelled before it began is too. The state is `new` where nothing was launched.
    """
    status = _read(run_dir)
    state, job = status["state"], status["job_id"]
    active = job in jobs
    if active and jobs[job] == "PENDING":
        state = "requeued" if status["restarts"] or state != "submitted" else "submitted"
    elif not active and state in EXPECTED:
        state = "lost"
    return status | {"state": state, "active": active}


def _read(run_dir: Path) -> dict:
    path = run_dir / LAUNCH_DIR / "status.json"
    if not path.is_file():
        return {"state": "new"} | _EMPTY
    try:
        record = json.loads(path.read_text())
        return _EMPTY | record | {"state": record["state"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: delete it if no job of the run is left.") from error


def last_record(run_dir: Path) -> dict | None:
    """The metrics of the last step, if there is one."""
    path = run_dir / "metrics.jsonl"
    records = read_metrics(path) if path.is_file() else []
    return records[-1] if records else None


def status_line(run_dir: Path, jobs: dict[str, str]) -> str:
    status, record = read_status(run_dir, jobs), last_record(run_dir)
    words = [f"{run_dir}: {status['state']}"]
    if status["job_id"]:
        words.append(f"job {status['job_id']}")
    if status["restarts"]:
        words.append(f"restarts {status['restarts']}")
    if status["nodes"]:
        words.append(f"nodes {status['nodes']}")
    if status["exit_code"]:
        words.append(f"exit code {status['exit_code']}")
    if record:
        words.append(f"step {record['step'] + 1}")
        words += [f"{key} {record[key]:.3f}" for key in ("reward/mean", "eval/score")]
    return ", ".join(words)
