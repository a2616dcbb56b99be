"""How runs stand: status file, Slurm's word on the job, last step; the table of a sweep."""

import csv
import json
import re
import shutil
import subprocess
from argparse import Namespace
from collections.abc import Iterable
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

from alp_megatron.errors import RunError, UserError
from alp_megatron.files import write_atomic
from alp_megatron.launch.members import MANIFEST, Member, name, read_manifest
from alp_megatron.metrics.recorder import read_metrics
from alp_megatron.runtime.run_dir import LAUNCH_DIR


def submit_held(script: Path, *options: str) -> str:
    """Submits and returns the job's number. It begins when it is released.

    Raises:
        UserError: Slurm is not installed.
        RunError: it refused, with its own words.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch is not installed here: submit on a machine of the cluster, or look at the "
            "script with --dry-run."
        )
    command = ["sbatch", "--parsable", "--hold", *options, str(script)]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        raise RunError(f"sbatch refused {script}: {' '.join(answer.stderr.split())}")
    return answer.stdout.strip().split(";")[0]  # number;cluster


def release(job: str) -> None:
    answer = subprocess.run(["scontrol", "release", job], capture_output=True, text=True)
    if answer.returncode != 0:
        raise RunError(f"job {job} cannot be released: {' '.join(answer.stderr.split())}")


def active_jobs() -> dict[str, str]:
    """Returns {job: state} of this user's waiting and running jobs, array members as 12_3.

    A heterogeneous job (12+0 and 12+1) is one, in the state of its first component.

    Empty where Slurm is not installed. RunError where it does not answer: then nobody knows.
    """
    if shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        raise RunError(f"squeue does not answer: {' '.join(answer.stderr.split())}")
    return dict(re.findall(r"^([\d_]+)(?:\+0)? (\S+)$", answer.stdout, re.MULTILINE))


# Slurm has the job still, or should.
EXPECTED = ("submitted", "running", "stopping", "requeued")
_EMPTY = {"job_id": None, "restarts": 0, "nodes": None, "exit_code": None}


def write_status(run_dir: Path, state: str, **values) -> None:
    """Writes `launch/status.json`; the batch script writes the same from inside of the job."""
    record = {"state": state} | _EMPTY | values | {"time": f"{datetime.now(UTC):%FT%TZ}"}
    write_atomic(run_dir / LAUNCH_DIR / "status.json", (json.dumps(record) + "\n").encode())


def known_jobs(run_dirs: Iterable[Path]) -> dict[str, str]:
    """Returns Slurm's jobs; it is asked only where one of the runs had a job."""
    return active_jobs() if any(_read(run_dir)["job_id"] for run_dir in run_dirs) else {}


def read_status(run_dir: Path, jobs: dict[str, str]) -> dict:
    """Returns the status file with Slurm's word on it.

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
    """Returns the metrics of the last step, if there is one."""
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


METRICS = ("eval/score", "reward/mean", "mismatch_before/k3", "ratio/p98")


def results(arguments: Namespace) -> int:
    """Prints the table, and writes it to results.csv in the sweep's directory.

    Where members differ in nothing but the seed, their means are printed below it.
    """
    root = Path(arguments.sweep_dir)
    members = read_manifest(root)
    if not members:
        raise UserError(f"{root} holds no {MANIFEST}: name the sweep_dir of a sweep.")
    rows = table(root, members)
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomic(root / "results.csv", text.getvalue().encode())
    _print(rows)
    means = seed_means(root, members)
    if len(means) > 1:
        print()
        _print(means)
    return 0


def _print(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def table(root: Path, members: list[Member]) -> list[list[str]]:
    """Returns a heading, then one row a member: number, its values, state, steps made, METRICS."""
    jobs = known_jobs(member.run_dir(root) for member in members)
    keys = list(dict.fromkeys(key for member in members for key in member.values))
    rows = [["member", *keys, "state", "steps", *METRICS]]
    for member in members:
        run_dir = member.run_dir(root)
        record = last_record(run_dir) or {}
        steps = str(record["step"] + 1) if record else "0"
        values = [str(member.values[key]) if key in member.values else "" for key in keys]
        metrics = [f"{record[key]:.4g}" if key in record else "" for key in METRICS]
        state = read_status(run_dir, jobs)["state"]
        rows.append([f"{member.index:04d}", *values, state, steps, *metrics])
    return rows


def seed_means(root: Path, members: list[Member]) -> list[list[str]]:
    """Returns a heading, then a row for each set of finished members that differ in their seeds
    only.

    A metric is the mean of their last steps' with its 95 % bootstrap interval.
    """
    from alp_megatron.metrics.intervals import mean_interval

    jobs = known_jobs(member.run_dir(root) for member in members)
    groups: dict[str, list[dict]] = {}
    for member in members:
        record = last_record(member.run_dir(root))
        finished = read_status(member.run_dir(root), jobs)["state"] == "finished"
        if "seed" in member.values and record and finished:
            others = {key: value for key, value in member.values.items() if key != "seed"}
            groups.setdefault(name(others) or "all", []).append(record)
    rows = [["mean over seeds", "seeds", *METRICS]]
    for label, records in groups.items():
        if len(records) > 1:
            found = [[r[key] for r in records if key in r] for key in METRICS]
            cells = [mean_interval(values).shown(".4g") if values else "" for values in found]
            rows.append([label, str(len(records)), *cells])
    return rows
