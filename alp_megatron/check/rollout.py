"""Refuses rollout engines that the model or the machine cannot have."""

from urllib.parse import urlsplit

from alp_megatron.config.schema import Config, RolloutConfig
from alp_megatron.errors import UserError
from alp_megatron.hf.shape import ModelShape
from alp_megatron.hf.tensors import Shapes
from alp_megatron.weights.quantize.scheme import UNQUANTIZED, Scheme, scheme_of


def check_servers(config: Config) -> None:
    """Raises UserError: one sentence naming the key and the mend. Connects to nothing."""
    rollout = config.rollout
    if rollout.engine != "server":
        for key in ("server_urls", "num_servers", "transport"):
            default = RolloutConfig.model_fields[key].get_default(call_default_factory=True)
            if getattr(rollout, key) != default:
                raise UserError(f"rollout.{key} needs rollout.engine=server: set it, or drop this.")
        return
    if rollout.server_urls and rollout.num_servers != 1:
        raise UserError(
            f"rollout.num_servers={rollout.num_servers} starts servers, but rollout.server_urls "
            "names some that run already: keep one of the two."
        )
    for url in rollout.server_urls:
        _check_url(url)
    if len({url.rstrip("/") for url in rollout.server_urls}) < len(rollout.server_urls):
        raise UserError("rollout.server_urls names a server twice: name each once.")
    if rollout.transport in ("cuda_ipc", "nccl") and config.runtime.device == "cpu":
        raise UserError(
            f"rollout.transport={rollout.transport} needs runtime.device=cuda: use shared_memory "
            "or directory."
        )
    if rollout.transport == "cuda_ipc" and rollout.num_servers > 1:
        raise UserError(
            f"rollout.transport=cuda_ipc serves one server, on the GPU of the trainer's rank 0, "
            f"but rollout.num_servers={rollout.num_servers}: set it to 1, or use shared_memory."
        )


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        right = (
            parts.scheme == "http"
            and parts.hostname
            and parts.port
            and parts.path in ("", "/")
            and not (parts.query or parts.fragment or parts.username)
        )
    except ValueError:  # a port that is no number
        right = False
    if not right:
        raise UserError(f"rollout.server_urls: '{url}' is not an address: write http://HOST:PORT.")


def check_quantization(config: Config, weights: Shapes, shape: ModelShape) -> None:
    """Raises UserError naming the key and the mend. `weights`: shapes of the checkpoint."""
    rollout = config.rollout
    quantized = rollout.quantization != UNQUANTIZED
    if not quantized and rollout.kv_cache_dtype == "auto":
        return
    on_cpu = _device(config) == "cpu"
    if rollout.kv_cache_dtype != "auto" and on_cpu:
        _check_cpu_kv_cache(shape)
    if not quantized:
        return
    scheme = scheme_of(weights, rollout.quantization, tuple(rollout.quantization_ignore))
    _check_fit(scheme)
    if on_cpu and any(".experts." in name for name in scheme.groups):
        raise UserError(
            f"rollout.quantization={rollout.quantization}: vLLM has no quantised experts on a CPU: "
            "set rollout.quantization_ignore=['*.experts.*']."
        )
    if not on_cpu and rollout.dtype == "float32":
        raise UserError(
            f"rollout.quantization={rollout.quantization}: vLLM's GPU kernels for it do not give "
            "float32: set rollout.dtype=bfloat16."
        )


def _check_fit(scheme: Scheme) -> None:
    if not scheme.unfit:
        return
    name, why = next(iter(scheme.unfit.items()))
    modules = sorted({f"*.{unfit.split('.')[-2]}" for unfit in scheme.unfit})
    raise UserError(
        f"rollout.quantization={scheme.quantization} cannot hold {name} ({why}): add {modules} to "
        "rollout.quantization_ignore, or use int8 or fp8."
    )


def _check_cpu_kv_cache(shape: ModelShape) -> None:
    import torch

    if not torch.cpu._is_avx512_supported():
        raise UserError(
            "rollout.kv_cache_dtype=fp8 needs a GPU or a CPU with AVX-512, which this machine "
            "lacks: set it to auto."
        )
    if shape.head_dim % 32:
        raise UserError(
            f"rollout.kv_cache_dtype=fp8 needs heads of a multiple of 32 on a CPU, the model's "
            f"have {shape.head_dim}: set it to auto."
        )


def _device(config: Config) -> str:
    from alp_megatron.runtime.mesh import device_type

    return device_type(config.runtime.device)
