"""What a vLLM process must know to start, and the rollout engine that a configuration asks for."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from alp_megatron.config.layout import world_size
from alp_megatron.config.schema import Config
from alp_megatron.rollout.engine import RolloutEngine
from alp_megatron.weights.quantize.scheme import UNQUANTIZED
from alp_megatron.weights.transport.buckets import Transport

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


def start_rollout_engine(
    config: Config, device: Literal["cpu", "cuda"], log_dir: Path
) -> RolloutEngine:
    """Returns at once, while vLLM starts; its logs are `log_dir`/vllm*.log.

    Args:
        device: the resolved one: the configuration may say 'auto'.
    """
    settings = engine_settings(config, device)
    if config.rollout.engine == "vllm":
        from alp_megatron.rollout.vllm.engine import VllmEngine

        return VllmEngine(settings, log_dir / "vllm.log")
    from alp_megatron.rollout.server.engine import ServerEngine
    from alp_megatron.rollout.server.launch import ServerProcess

    rollout = config.rollout

    def start(index: int) -> ServerProcess:
        gpu = _gpu(config, index) if device == "cuda" else None
        log = log_dir / f"vllm-{index}.log"
        return ServerProcess(settings, rollout.transport, log, gpu=gpu)

    return ServerEngine(
        settings,
        make_transport(config, log_dir / "weights"),
        rollout.transport,
        start,
        rollout.num_servers,
        rollout.server_urls,
    )


def make_transport(config: Config, weights_dir: Path) -> Transport:
    """Makes the one that `rollout.transport` names; `weights_dir` is the directory transport's."""
    from alp_megatron.weights.transport.memory import CudaIpc, SharedMemory

    name = config.rollout.transport
    if name == "directory":
        from alp_megatron.weights.transport.directory import Directory

        return Directory(weights_dir)
    if name == "cuda_ipc":
        return CudaIpc()
    if name == "nccl":
        from alp_megatron.weights.transport.nccl import Nccl

        return Nccl()
    return SharedMemory()


def _gpu(config: Config, index: int) -> str:
    """Colocated with the trainer's ranks, one after the other; NCCL needs GPUs that no rank has."""
    import torch

    count = torch.cuda.device_count()
    first = world_size(config) if config.rollout.transport == "nccl" else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return visible.split(",")[(first + index) % count]
