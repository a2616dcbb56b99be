"""How vLLM is started: its environment and its arguments, for the library and for `vllm serve`."""

from collections.abc import Mapping
from typing import Any

from alp_megatron.rollout.settings import EngineSettings
from alp_megatron.weights.quantize.scheme import UNQUANTIZED, quantization_config, scheme_of_model

# torchrun's: with them vLLM would take itself for a rank of the trainer.
_LAUNCHER = {"RANK", "WORLD_SIZE"}
_LAUNCHER_PREFIXES = ("MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_")

_ALWAYS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: nothing to orphan (LLM only)
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # the engine adds one to max_model_len
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",  # the log has the last words of a killed process
}

_SERVER = {
    "VLLM_SERVER_DEV_MODE": "1",  # the weight-transfer API is part of it
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}

_ON_CPU = {
    "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than it saves
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # share the cores with the trainer
    "THP_MEM_ALLOC_ENABLE": "1",  # large pages, as runtime.process has them
}


def child_environment(settings: EngineSettings, parent: Mapping[str, str]) -> dict[str, str]:
    environment = {
        key: value
        for key, value in parent.items()
        if key not in _LAUNCHER and not key.startswith(_LAUNCHER_PREFIXES)
    }
    environment |= _ALWAYS
    if settings.device == "cpu":
        environment |= _ON_CPU | {"OMP_NUM_THREADS": str(settings.cpu_threads)}
    return environment


def server_environment(settings: EngineSettings, parent: Mapping[str, str]) -> dict[str, str]:
    return child_environment(settings, parent) | _SERVER | settings.to_environment()


def vllm_arguments(settings: EngineSettings) -> dict[str, Any]:
    """vLLM's engine arguments under the names of `vllm.LLM`; all of them can be written as JSON.

    A quantised engine starts with random weights: the codes come with the first update, and no
    quantised checkpoint need lie on disk.
    """
    arguments: dict[str, Any] = {
        "model": settings.model_dir,
        "dtype": settings.dtype,
        # Scoring a sequence of full length also samples one token, which is dropped.
        "max_model_len": settings.max_model_len + 1,
        "seed": settings.seed,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",  # no sampling defaults from the model's directory
        "kv_cache_dtype": settings.kv_cache_dtype,
    }
    if settings.quantization != UNQUANTIZED:
        scheme = scheme_of_model(
            settings.model_dir, settings.quantization, settings.quantization_ignore
        )
        arguments["hf_overrides"] = {"quantization_config": quantization_config(scheme)}
        arguments["load_format"] = "dummy"
    if settings.device == "cpu":
        arguments["enforce_eager"] = True
        arguments["kv_cache_memory_bytes"] = settings.cpu_kv_cache_mib * 2**20
    else:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
    return arguments
