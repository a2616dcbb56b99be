"""`alp-megatron launch submit`, `sweep` and `status`."""

from argparse import Namespace
from pathlib import Path

from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.files import write_atomic
from alp_megatron.launch.cluster import LOGS, ClusterConfig, load_cluster, render, split_overrides
from alp_megatron.launch.local import run_members, runs_at_once
from alp_megatron.launch.members import (
    MANIFEST,
    Member,
    SweepConfig,
    expand,
    extended,
    load_sweep,
    overrides,
    read_manifest,
    write_manifest,
)
from alp_megatron.launch.run_config import print_unchecked, run_config, write_run_config
from alp_megatron.launch.status import (
    known_jobs,
    read_status,
    release,
    status_line,
    submit_held,
    write_status,
)
from alp_megatron.runtime.run_dir import LAUNCH_DIR


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
    """Prints one line for each run, or for each member of a sweep."""
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


def sweep(arguments: Namespace) -> int:
    """Checks every member before any is launched; finished and running ones are left alone."""
    if arguments.local == bool(arguments.cluster):
        raise UserError("a sweep needs one of --cluster FILE and --local: give one.")
    of_run, of_cluster = split_overrides(arguments.overrides)
    config = load_sweep(arguments.config)
    root = Path(config.sweep_dir)
    known = read_manifest(root)
    members = extended(known, expand(config))
    cluster = load_cluster(arguments.cluster, of_cluster) if arguments.cluster else None
    if cluster and cluster.rollout:
        raise UserError(
            "cluster.rollout asks for a heterogeneous job, and Slurm has no arrays of those: set "
            "it to null, or submit the members one by one with `launch submit`."
        )
    dry = arguments.dry_run
    configs = {m.index: _member_config(config, m, of_run, cluster, dry) for m in members}
    due = _due(root, members)
    script = render(cluster, root, _array(config, due)) if cluster else None
    if dry:
        print_unchecked(configs.values())
        print(script or "".join(f"{member.name}\n" for member in due), end="")
        return 0
    write_manifest(root, known, members)
    for member in due:
        begun = (member.run_dir(root) / "config.yaml").is_file()
        write_run_config(configs[member.index], resume=begun)
    skipped = len(members) - len(due)
    print(f"{root}: {len(members)} members, {skipped} finished or running, {len(due)} to launch")
    if not due:
        return 0
    if script:
        return _submit(script, root, due)
    fitting = runs_at_once(configs[member.index] for member in due)
    return run_members(root, due, min(fitting, config.max_parallel or fitting))


def _submit(script: str, root: Path, due: list[Member]) -> int:
    path = root / LAUNCH_DIR / "job.sh"
    (root / LOGS).mkdir(parents=True, exist_ok=True)
    write_atomic(path, script.encode())
    job = submit_held(path)  # none may begin before its status is written
    for member in due:
        write_status(member.run_dir(root), "submitted", job_id=f"{job}_{member.index}")
    release(job)
    print(f"job {job}: {path.parent}")
    return 0


def _array(sweep: SweepConfig, due: list[Member]) -> str:
    """Returns '0,2,5%4': the members' numbers, and how many of them at the same time."""
    limit = f"%{sweep.max_parallel}" if sweep.max_parallel else ""
    return ",".join(str(member.index) for member in due) + limit


def _member_config(
    sweep: SweepConfig,
    member: Member,
    of_run: list[str],
    cluster: ClusterConfig | None,
    dry: bool,
) -> Config:
    run_dir = member.run_dir(Path(sweep.sweep_dir))
    words = [*overrides(sweep.set | member.values), *of_run, *overrides({"run_dir": str(run_dir)})]
    try:
        return run_config(sweep.base, words, cluster, dry)
    except UserError as error:
        raise UserError(f"member '{member.name}': {error}") from error


def _due(root: Path, members: list[Member]) -> list[Member]:
    """Neither finished nor known to Slurm."""
    jobs = known_jobs(member.run_dir(root) for member in members)
    statuses = [read_status(member.run_dir(root), jobs) for member in members]
    return [
        member
        for member, status in zip(members, statuses, strict=True)
        if status["state"] != "finished" and not status["active"]
    ]
