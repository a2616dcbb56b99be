"""A vLLM server on the same GPU: rollouts, and weights updated in place over CUDA IPC."""

import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from benchmarks.gpu.part import Found, Goal, Part, need

UPDATES = 5
PROMPTS, NEW_TOKENS = 128, 128


def rollout_parts() -> dict[str, Part]:
    kinds: list[Literal["none", "fp8"]] = ["none", "fp8"]
    return {f"rollouts: {kind}": partial(rollouts, kind) for kind in kinds}


def rollouts(quantization: Literal["none", "fp8"]) -> Found:
    """Seconds and GB/s of an update of the 0.5B model, quantised on the way, tokens/s of
    generation, and whether every tensor's hash came through."""
    need("vllm", "transformers")
    from alp_megatron.hf.tensors import HfTensors
    from alp_megatron.rollout.engine import SamplingSpec
    from alp_megatron.rollout.server.engine import ServerEngine
    from alp_megatron.rollout.server.launch import ServerProcess
    from alp_megatron.rollout.settings import engine_settings
    from alp_megatron.weights.quantize.scheme import rollout_scheme
    from alp_megatron.weights.quantize.stream import quantized
    from alp_megatron.weights.transport.memory import CudaIpc
    from alp_megatron.weights.verify import digest
    from benchmarks.gpu.models import model_directory, training_config

    path = model_directory("0.5B")
    with tempfile.TemporaryDirectory() as scratch:
        config = training_config(path, "alp", None)
        config.rollout.quantization = quantization
        config.rollout.max_model_len = 512
        scheme, settings = rollout_scheme(config), engine_settings(config, "cuda")
        tensors = HfTensors(path)
        weights = {n: tensors.tensor(n).bfloat16().cuda() for n in tensors.names()}
        size = sum(t.nbytes for _, t in quantized(weights.items(), scheme))

        def start(index: int) -> ServerProcess:
            return ServerProcess(settings, "cuda_ipc", Path(scratch) / "vllm.log", gpu="0")

        with ServerEngine(settings, CudaIpc(), "cuda_ipc", start, 1, urls=[]) as engine:
            received = engine.update_weights(quantized(weights.items(), scheme), 1, digests=True)
            sent = {n: digest(t.cpu()) for n, t in quantized(weights.items(), scheme)}
            seconds = []
            for version in range(2, 2 + UPDATES):
                started = time.perf_counter()
                engine.update_weights(quantized(weights.items(), scheme), version)
                torch.cuda.synchronize()
                seconds.append(time.perf_counter() - started)
            spec = SamplingSpec(1, 1.0, NEW_TOKENS, stop_token_ids=(), seed=0)
            started = time.perf_counter()
            samples = engine.generate([[5, 6, 7, 8]] * PROMPTS, spec)
            generation = time.perf_counter() - started
    made = sum(len(sample.response_ids) for of_prompt in samples for sample in of_prompt)
    figures = {
        "update_s": median(seconds),
        "update_gb_per_s": size / median(seconds) / 1e9,
        "sent_gb": size / 1e9,
        "rollout_tokens_per_s": made / generation,
    }
    return Found(figures, [Goal("tensors that arrived whole", sent == received, at_least=1)])
