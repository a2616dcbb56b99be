"""The configuration that a job runs: checked where it is submitted, written beside the run."""

import sys
from collections.abc import Iterable
from pathlib import Path

from alp_megatron.check.validate import check_settings, validate
from alp_megatron.config.load import load_config, resolved_yaml
from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.files import write_atomic
from alp_megatron.hf.shape import read_model_shape
from alp_megatron.hf.tensors import INDEX, SINGLE
from alp_megatron.launch.cluster import ClusterConfig
from alp_megatron.runtime.run_dir import LAUNCH_DIR, check_occupation


def run_config(
    path: str | Path, overrides: list[str], cluster: ClusterConfig | None, dry: bool = False
) -> Config:
    """Returns the Config of a run on all processes of the cluster's job; None: as the file says.

    Args:
        dry: nothing will run, so what is `not_here` is not checked.

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
        if cluster.rollout:
            _serve_elsewhere(config)
    # The machine that submits may have no GPU: the job finds out about its own.
    runtime = config.runtime.model_copy(update={"device": "auto"})
    checked = config.model_copy(update={"runtime": runtime})
    if dry and not_here(config):
        check_settings(checked, read_model_shape(config.model.path))
    else:
        validate(checked)
    return config


def _serve_elsewhere(config: Config) -> None:
    """The job starts the servers, whatever the file says, and names them when it has its nodes."""
    rollout = config.rollout
    if rollout.transport not in ("directory", "nccl"):
        raise UserError(
            f"rollout.transport={rollout.transport} does not leave the machine, but "
            "cluster.rollout gives the servers nodes of their own: set it to directory, or on GPUs "
            "to nccl."
        )
    rollout.engine, rollout.num_servers, rollout.server_urls = "server", 1, []


def not_here(config: Config) -> list[str]:
    """Names what the run reads that is not on this machine: its weights, its data."""
    model_dir, task = Path(config.model.path), config.task
    weights = (SINGLE, INDEX)
    missing = []
    if not any((model_dir / name).exists() for name in weights):
        missing.append(f"the weights of model.path={model_dir}")
    if task.name == "file":
        data = {"task.train": task.train, "task.eval": task.eval}
        missing += [f"{k}={path}" for k, path in data.items() if path and not Path(path).is_file()]
    return missing


def print_unchecked(configs: Iterable[Config]) -> None:
    """Says after a dry run what was not checked, on stderr: the script is on stdout."""
    for what in dict.fromkeys(what for config in configs for what in not_here(config)):
        print(f"note: not checked, because not here: {what}", file=sys.stderr)


def write_run_config(config: Config, resume: bool) -> Path:
    """Writes `RUN_DIR/launch/config.yaml`; raises UserError where another run is in the way."""
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
