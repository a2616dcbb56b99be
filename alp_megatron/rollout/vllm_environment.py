"""Environment variables of the engine's process."""

from collections.abc import Mapping

from alp_megatron.rollout.settings import EngineSettings

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
