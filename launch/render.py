"""The batch script of a run or of an array of runs, from job.sh.j2."""

import shlex
import sys
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from alp_megatron.errors import UserError
from launch.cluster import ClusterConfig

LOGS = "launch/logs"


def render(cluster: ClusterConfig, root: Path, array: str | None = None) -> str:
    """The text of the script.

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
        loader=PackageLoader("launch", "."),
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
