"""`alp-megatron launch sweep`: an array job, or one run after the other on this machine."""

from argparse import Namespace
from pathlib import Path

from alp_megatron.config.run_dir import LAUNCH_DIR
from alp_megatron.config.schema import Config
from alp_megatron.diagnostics.files import write_atomic
from alp_megatron.errors import UserError
from launch.cluster import ClusterConfig, load_cluster, split_overrides
from launch.cores import runs_at_once
from launch.local import run_members
from launch.manifest import Member, extended, read_manifest, write_manifest
from launch.render import LOGS, render
from launch.run_config import print_unchecked, run_config, write_run_config
from launch.slurm import release, submit_held
from launch.status import known_jobs, read_status, write_status
from launch.sweep_config import SweepConfig, expand, load_sweep, overrides


def sweep(arguments: Namespace) -> int:
    """Every member is checked before any is launched; finished and running ones are left alone."""
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
    """'0,2,5%4': the members' numbers, and how many of them at the same time."""
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
