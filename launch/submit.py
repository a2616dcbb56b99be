"""`alp-megatron launch submit` and `launch status`."""

from argparse import Namespace
from pathlib import Path

from alp_megatron.config.run_dir import LAUNCH_DIR
from alp_megatron.diagnostics.files import write_atomic
from alp_megatron.errors import UserError
from launch.cluster import load_cluster, split_overrides
from launch.manifest import MANIFEST, read_manifest
from launch.render import render
from launch.run_config import print_unchecked, run_config, write_run_config
from launch.slurm import release, submit_held
from launch.status import known_jobs, read_status, status_line, write_status


def submit(arguments: Namespace) -> int:
    """Submits one run, or prints its script. The job itself starts or resumes what is there."""
    of_run, of_cluster = split_overrides(arguments.overrides)
    cluster = load_cluster(arguments.cluster, of_cluster)
    config = run_config(arguments.config, of_run, cluster, dry=arguments.dry_run)
    run_dir = Path(config.run_dir)
    script = render(cluster, run_dir)
    if arguments.dry_run:
        print_unchecked([config])
        print(script, end="")
        return 0
    status = read_status(run_dir, known_jobs([run_dir]))
    if status["active"]:
        raise UserError(
            f"run_dir={run_dir} belongs to job {status['job_id']}, which has not ended: "
            f"`scancel {status['job_id']}` first, or choose another run_dir."
        )
    path = write_run_config(config, arguments.resume).with_name("job.sh")
    write_atomic(path, script.encode())
    job = submit_held(path)  # it must not begin before its status is written
    write_status(run_dir, "submitted", job_id=job)
    release(job)
    print(f"job {job}: {run_dir / LAUNCH_DIR}")
    return 0


def status(arguments: Namespace) -> int:
    """One line for each run, or for each member of a sweep."""
    lines: dict[Path, str] = {}  # what is written behind a run's line
    for directory in map(Path, arguments.run_dir):
        if (directory / MANIFEST).is_file():
            members = read_manifest(directory)
            lines |= {member.run_dir(directory): f" [{member.name}]" for member in members}
        elif directory.is_dir():
            lines[directory] = ""
        else:
            raise UserError(f"{directory} is no directory: name a run directory or a sweep_dir.")
    jobs = known_jobs(lines)
    for run_dir, text in lines.items():
        print(status_line(run_dir, jobs) + text)
    return 0
