"""Rollout engines over HTTP, on tiny models."""

from pathlib import Path

from alp_megatron.rollout.server.engine import ServerEngine
from alp_megatron.rollout.server.launch import ServerProcess
from alp_megatron.rollout.settings import EngineSettings
from alp_megatron.weights.transport.buckets import Transport

MAX_LEN = 48


def settings_of(model_dir: str) -> EngineSettings:
    return EngineSettings(
        model_dir=model_dir,
        device="cpu",
        dtype="float32",
        max_model_len=MAX_LEN,
        cpu_kv_cache_mib=16,
        gpu_memory_utilization=0.4,
        cpu_threads=1,
        seed=0,
    )


def start_servers(
    model_dir: str, transport: Transport, name: str, directory: Path, count: int
) -> ServerEngine:
    settings = settings_of(model_dir)

    def start(index: int) -> ServerProcess:
        return ServerProcess(settings, name, directory / f"vllm-{index}.log")

    return ServerEngine(settings, transport, name, start, count, urls=[])
