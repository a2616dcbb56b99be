"""`alp-megatron serve`: one vLLM server with the settings of a run's configuration."""

import signal
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from alp_megatron.check.validate import validate
from alp_megatron.commands.arguments import add_config
from alp_megatron.config.load import load_config
from alp_megatron.errors import UserError


def add_arguments(parser: ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) for a free one")
    parser.add_argument("--ready-file", help="file to make when the server is ready")


def run(arguments: Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C; prints the address when the server is ready."""
    if not 0 <= arguments.port < 2**16:
        raise UserError(f"--port {arguments.port} is not a port: use 1 to 65535, or 0 for any.")
    ready_file = Path(arguments.ready_file) if arguments.ready_file else None
    if ready_file and not ready_file.parent.is_dir():
        raise UserError(f"--ready-file {ready_file}: there is no directory {ready_file.parent}.")
    config = load_config(arguments.config, arguments.overrides)
    validate(config, for_training=False)
    from alp_megatron.rollout.server.launch import ServerProcess
    from alp_megatron.rollout.settings import engine_settings
    from alp_megatron.runtime.mesh import device_type

    settings = engine_settings(config, device_type(config.runtime.device))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    server = ServerProcess(settings, config.rollout.transport, None, arguments.host, arguments.port)
    try:
        what = f"{config.model.path} (transport {config.rollout.transport})"
        return _watch(server, what, ready_file)
    finally:
        server.close()


def _watch(server, what: str, ready_file: Path | None) -> int:
    """Returns the exit code of the server, which ends only by itself."""
    said = False
    while server.returncode is None:
        if not said and _healthy(server.url):
            print(f"serving {what} at {server.url}", flush=True)
            if ready_file:
                ready_file.touch()
            said = True
        time.sleep(0.2)
    print(f"error: the server ended with code {server.returncode}.", file=sys.stderr)
    return 1


def _healthy(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=60) as response:
            return response.status == 200
    except (URLError, OSError):
        return False
