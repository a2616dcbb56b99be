"""Says what a server serves; the server answers with it, the run compares it with its own."""

import hashlib
from pathlib import Path
from typing import Any

from alp_megatron.hf.tensors import HfTensors
from alp_megatron.rollout.settings import EngineSettings


def identity(settings: EngineSettings, transport: str) -> dict[str, Any]:
    """Returns what a server of these settings serves; it can be written as JSON.

    The weights themselves are not part of it: they are replaced.
    """
    shapes = sorted(HfTensors(settings.model_dir).shapes.items())
    return {
        "model": f"{Path(settings.model_dir).name} ({len(shapes)} tensors)",
        "tensors": hashlib.sha256(repr(shapes).encode()).hexdigest(),
        "rollout.dtype": settings.dtype,
        "rollout.max_model_len": settings.max_model_len,
        "rollout.quantization": settings.quantization,
        "rollout.quantization_ignore": list(settings.quantization_ignore),
        "rollout.kv_cache_dtype": settings.kv_cache_dtype,
        "rollout.transport": transport,
    }


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Says what a server has that the run does not want."""
    if theirs.get("tensors") != ours["tensors"]:
        return f"serves the model {theirs.get('model')}, but the run's is {ours['model']}"
    for key, value in ours.items():
        if key.startswith("rollout.") and theirs.get(key) != value:
            return f"was started with {key}={theirs.get(key)}, but the run has {value}"
    return None
