"""Slurm's commands, and what they answer."""

import re
import shutil
import subprocess
from pathlib import Path

from alp_megatron.errors import RunError, UserError


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
    """{job: state} of this user's waiting and running jobs, array members as 12_3.

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
