"""Says what a vLLM process must know to start."""

import json
import os
from dataclasses import asdict, dataclass
from typing import Literal

from alp_megatron.config.schema import Config
from alp_megatron.weights.quantize.scheme import UNQUANTIZED

_VARIABLE = "ALP_MEGATRON_ENGINE"


@dataclass(frozen=True)
class EngineSettings:
    """Sizes in tokens (max_model_len) and MiB (cpu_kv_cache_mib); see config.RolloutConfig."""

    model_dir: str
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    max_model_len: int
    cpu_kv_cache_mib: int
    gpu_memory_utilization: float
    cpu_threads: int
    seed: int
    quantization: str = UNQUANTIZED
    quantization_ignore: tuple[str, ...] = ()
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"

    def to_environment(self) -> dict[str, str]:
        """Returns variables for `settings_from_environment` in a process of vLLM's own making."""
        return {_VARIABLE: json.dumps(asdict(self))}


def settings_from_environment() -> EngineSettings:
    return EngineSettings(**json.loads(os.environ[_VARIABLE]))


def engine_settings(config: Config, device: Literal["cpu", "cuda"]) -> EngineSettings:
    """`device` is the resolved one: the configuration may say 'auto'."""
    rollout = config.rollout
    return EngineSettings(
        model_dir=config.model.path,
        device=device,
        dtype=rollout.dtype,
        max_model_len=rollout.max_model_len,
        cpu_kv_cache_mib=rollout.cpu_kv_cache_mib,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        cpu_threads=rollout.cpu_threads,
        seed=config.seed if rollout.seed is None else rollout.seed,
        quantization=rollout.quantization,
        quantization_ignore=tuple(rollout.quantization_ignore),
        kv_cache_dtype=rollout.kv_cache_dtype,
    )
