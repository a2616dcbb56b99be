"""What a cluster asks of a job, and the batch script made of it."""

import re
import shlex
import sys
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import Field

from alp_megatron.config.load import load_section
from alp_megatron.config.schema import Section
from alp_megatron.errors import UserError


class ContainerConfig(Section):
    runtime: Literal["pyxis", "apptainer"] = "pyxis"
    image: str = Field(description="pyxis: an enroot URI or .sqsh file; apptainer: a .sif file")
    mounts: list[str] = Field(
        default_factory=list, description="HOST:CONTAINER or HOST:CONTAINER:ro; absolute paths"
    )


class RolloutNodesConfig(Section):
    """Nodes of the rollout servers alone; a key that is not given is as for the trainer's nodes."""

    nodes: int = Field(1, ge=1)
    gpus_per_node: int | None = Field(None, ge=0, description="a server for each; else one a node")
    cpus_per_node: int | None = Field(None, ge=1)
    partition: str | None = None
    constraint: str | None = None

    @property
    def servers_per_node(self) -> int:
        return self.gpus_per_node or 1

    @property
    def cpus_per_server(self) -> int | None:
        return self.cpus_per_node and self.cpus_per_node // self.servers_per_node


class ClusterConfig(Section):
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    processes_per_node: int | None = Field(None, ge=1, description="one for each GPU if not given")
    cpus_per_node: int | None = Field(None, ge=1)
    time_limit: str = Field("04:00:00", description="[DAYS-]HOURS:MINUTES:SECONDS")
    stop_before_end: int = Field(
        600, ge=1, le=65535, description="seconds for the last step, the checkpoint and the end"
    )
    requeue: bool = Field(True, description="go on by itself after the time limit or a lost node")
    modules: list[str] = Field(default_factory=list)
    environment: dict[str, str | int] = Field(
        default_factory=dict, description="for NCCL, vLLM and others; values are taken as they are"
    )
    python: str | None = Field(
        None,
        description="interpreter in the job (in its container); the submitting one if not given",
    )
    container: ContainerConfig | None = None
    rollout: RolloutNodesConfig | None = Field(
        None, description="makes the job a heterogeneous one; without it vLLM is beside the trainer"
    )

    @property
    def processes(self) -> int:
        """Training processes on one node."""
        return self.processes_per_node or self.gpus_per_node or 1


_NAME = re.compile(r"[\w.,&|@+-]+")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")
_TIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")
_MOUNT = re.compile(r"/[^:,\n]*:/[^:,\n]*(:ro)?")
PREFIX = "cluster."


def load_cluster(path: str | Path, overrides: list[str]) -> ClusterConfig:
    """Reads a cluster file; overrides such as `nodes=4` win. Raises UserError naming the key."""
    cluster = load_section(ClusterConfig, path, overrides)
    names = {key: getattr(cluster, key) for key in ("partition", "account", "qos", "constraint")}
    if rollout := cluster.rollout:
        for key in ("gpus_per_node", "cpus_per_node", "partition", "constraint"):
            if getattr(rollout, key) is None:
                setattr(rollout, key, getattr(cluster, key))
        names |= {f"rollout.{key}": getattr(rollout, key) for key in ("partition", "constraint")}
    for key, value in names.items():
        if value is not None and not _NAME.fullmatch(value):
            raise UserError(f"{key} is {value!r}: use letters, digits and .,&|@+- only.")
    for name in cluster.environment:
        if not _VARIABLE.fullmatch(name):
            raise UserError(f"environment.{name} is no name of a variable: use letters, digits, _.")
    if cluster.stop_before_end >= seconds(cluster.time_limit):
        raise UserError(
            f"stop_before_end={cluster.stop_before_end} is not less than "
            f"time_limit={cluster.time_limit}: lower it."
        )
    gpus = cluster.gpus_per_node
    if gpus and cluster.processes > gpus:
        raise UserError(
            f"processes_per_node={cluster.processes} is more than gpus_per_node={gpus}: lower it."
        )
    if rollout and rollout.cpus_per_server == 0:
        raise UserError(
            f"rollout.cpus_per_node={rollout.cpus_per_node} is less than one for each of the "
            f"node's {rollout.servers_per_node} servers: raise it."
        )
    for mount in cluster.container.mounts if cluster.container else []:
        if not _MOUNT.fullmatch(mount):
            raise UserError(
                f"container.mounts holds {mount!r}: write HOST:CONTAINER with absolute paths, "
                "and :ro behind it for read-only."
            )
    return cluster


def seconds(time_limit: str) -> int:
    found = _TIME.fullmatch(time_limit)
    if not found:
        raise UserError(
            f"time_limit is {time_limit!r}: write HOURS:MINUTES:SECONDS, as in 04:00:00, or "
            "DAYS-HOURS:MINUTES:SECONDS."
        )
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def split_overrides(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Returns (those of the run, those of the cluster: `cluster.nodes=2` without `cluster.`)."""
    of_cluster = [word[len(PREFIX) :] for word in overrides if word.startswith(PREFIX)]
    return [word for word in overrides if not word.startswith(PREFIX)], of_cluster


LOGS = "launch/logs"


def render(cluster: ClusterConfig, root: Path, array: str | None = None) -> str:
    """Returns the text of the script.

    Args:
        root: the run directory; with `array`, the directory of the members 0000, 0001, ...
        array: the numbers of the members, as sbatch's option takes them.

    Raises:
        UserError: a path that a line `#SBATCH` cannot hold.
    """
    root, directory = root.absolute(), Path.cwd()
    for path in (root, directory):
        if any(character in str(path) for character in '"\\\n'):
            raise UserError(f"{str(path)!r} cannot be named in a batch script: rename it.")
    environment = Environment(
        loader=PackageLoader("alp_megatron.launch", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["q"] = shlex.quote
    container, rollout = cluster.container, cluster.rollout
    # The job works in the directory it was submitted from, inside of the container as well.
    own = [f"{directory}:{directory}"]
    if not root.is_relative_to(directory):
        own.append(f"{root}:{root}")
    log = f"{root}/{LOGS}/".replace("%", "%%") + ("job-%A_%a.log" if array else "job-%j.log")
    return environment.get_template("job.sh.j2").render(
        cluster=cluster,
        rollout=rollout,
        servers=rollout.nodes * rollout.servers_per_node if rollout else 0,
        container=container,
        mounts=[*own, *container.mounts] if container else [],
        name="".join(c if c.isalnum() or c in "-_." else "_" for c in root.name),
        root=str(root),
        array=array,
        directory=str(directory).replace("%", "%%"),
        workdir=str(directory),
        log=log,
        python=cluster.python or sys.executable,
    )
