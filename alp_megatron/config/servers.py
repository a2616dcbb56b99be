"""Refuses settings of rollout servers that cannot work."""

from urllib.parse import urlsplit

from alp_megatron.config.schema import Config, RolloutConfig
from alp_megatron.errors import UserError


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
