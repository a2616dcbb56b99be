"""How vLLM is started: one set of arguments, for the library and for `vllm serve`."""

from typing import Any

from alp_megatron.rollout.settings import EngineSettings
from alp_megatron.weights.quantize.config import quantization_config
from alp_megatron.weights.quantize.scheme import UNQUANTIZED, scheme_of_model


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
