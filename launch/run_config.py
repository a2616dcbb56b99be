"""The configuration that a job runs: checked where it is submitted, written beside the run."""

from pathlib import Path

from alp_megatron.config.load import load_config, resolved_yaml
from alp_megatron.config.run_dir import LAUNCH_DIR, check_occupation
from alp_megatron.config.schema import Config
from alp_megatron.config.validate import validate
from alp_megatron.diagnostics.files import write_atomic
from alp_megatron.errors import UserError
from launch.cluster import ClusterConfig


def run_config(path: str | Path, overrides: list[str], cluster: ClusterConfig | None) -> Config:
    """Config of a run on all processes of the cluster's job; None: as the file says.

    Raises:
        UserError: what the run itself would refuse.
    """
    config = load_config(path, overrides)
    if cluster:
        processes = cluster.nodes * cluster.processes
        if config.runtime.world_size not in (None, processes):
            raise UserError(
                f"runtime.world_size={config.runtime.world_size}, but the job has {processes} "
                f"processes ({cluster.nodes} nodes x {cluster.processes}): drop it, or change "
                "cluster.nodes or cluster.processes_per_node."
            )
        config.runtime.world_size = processes
    # The machine that submits may have no GPU: the job finds out about its own.
    runtime = config.runtime.model_copy(update={"device": "auto"})
    validate(config.model_copy(update={"runtime": runtime}))
    return config


def write_run_config(config: Config, resume: bool) -> Path:
    """`RUN_DIR/launch/config.yaml`; raises UserError where another run is in the way."""
    run_dir = Path(config.run_dir)
    check_occupation(run_dir, resume)
    path = run_dir / LAUNCH_DIR / "config.yaml"
    try:
        (path.parent / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"run_dir={run_dir} cannot be made: {error.strerror}; choose another run_dir."
        ) from error
    write_atomic(path, resolved_yaml(config).encode())
    return path
