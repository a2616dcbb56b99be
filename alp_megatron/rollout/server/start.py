"""Starts the rollout engine that a configuration asks for, whichever of the two it is.

It lies here because this folder is the uppermost of the rollouts: rollout/ itself imports neither
kind of engine, rollout/vllm only rollout/, and rollout/server both.
"""

import os
from pathlib import Path
from typing import Literal

import torch

from alp_megatron.config.layout import world_size
from alp_megatron.config.schema import Config
from alp_megatron.rollout.engine import RolloutEngine
from alp_megatron.rollout.server.engine import ServerEngine
from alp_megatron.rollout.server.launch import ServerProcess
from alp_megatron.rollout.settings import engine_settings
from alp_megatron.rollout.vllm.engine import VllmEngine
from alp_megatron.weights.transport.buckets import Transport
from alp_megatron.weights.transport.directory import Directory
from alp_megatron.weights.transport.memory import CudaIpc, SharedMemory
from alp_megatron.weights.transport.nccl import Nccl


def start_rollout_engine(
    config: Config, device: Literal["cpu", "cuda"], log_dir: Path
) -> RolloutEngine:
    """Returns at once, while vLLM starts; its logs are `log_dir`/vllm*.log.

    Args:
        device: the resolved one: the configuration may say 'auto'.
    """
    settings = engine_settings(config, device)
    if config.rollout.engine == "vllm":
        return VllmEngine(settings, log_dir / "vllm.log")
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
    name = config.rollout.transport
    if name == "directory":
        return Directory(weights_dir)
    if name == "cuda_ipc":
        return CudaIpc()
    if name == "nccl":
        return Nccl()
    return SharedMemory()


def _gpu(config: Config, index: int) -> str:
    """Colocated with the trainer's ranks, one after the other; NCCL needs GPUs that no rank has."""
    count = torch.cuda.device_count()
    first = world_size(config) if config.rollout.transport == "nccl" else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return visible.split(",")[(first + index) % count]
