"""Reads batch scripts as Slurm and bash do."""

import shlex
import subprocess

QUICKSTART = "configs/quickstart.yaml"
H100 = "configs/clusters/pyxis_h100.yaml"
CPU = "configs/clusters/cpu.yaml"


def directives(script: str) -> dict[str, str]:
    lines = [shlex.split(line)[1] for line in script.splitlines() if line.startswith("#SBATCH")]
    return dict(line[2:].split("=", 1) if "=" in line else (line[2:], "") for line in lines)


def bash_accepts(script: str) -> bool:
    return subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
