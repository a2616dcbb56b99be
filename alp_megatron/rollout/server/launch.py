"""Starts one vLLM server as a child process, and ends it."""

import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

from alp_megatron.errors import UserError
from alp_megatron.rollout.engine import how_it_ended
from alp_megatron.rollout.settings import EngineSettings
from alp_megatron.rollout.vllm.arguments import server_environment

_GRACE_SECONDS = 10


class ServerProcess:
    """Starts and ends a server of this machine's. The constructor returns at once, while vLLM
    starts.

    Construct it on a thread that lives as long as the server shall: Linux ends the process with
    that thread.

    Args:
        transport: name of the way that the weights come, see vllm/receivers.py, RECEIVERS.
        log_path: file that takes all that the server prints; appended to. None: the console.
        port: 0 for a free one.
        gpu: the one that it uses, as CUDA_VISIBLE_DEVICES names it; None for what it finds.

    Raises UserError if the address is taken or is not this machine's.
    """

    def __init__(
        self,
        settings: EngineSettings,
        transport: str,
        log_path: Path | None,
        host: str = "127.0.0.1",
        port: int = 0,
        gpu: str | None = None,
    ):
        self._log_path = log_path
        environment = server_environment(settings, os.environ)
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        with _listener(host, port) as listener:
            self.url = f"http://{host}:{listener.getsockname()[1]}"
            arguments = map(str, (listener.fileno(), os.getpid(), transport))
            with open(log_path, "ab") if log_path else nullcontext() as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "alp_megatron.rollout.server.process", *arguments],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[listener.fileno()],
                )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, None while it lives."""
        return self._process.poll()

    def how_it_ended(self) -> str:
        assert self._log_path is not None and self.returncode is not None
        end = how_it_ended(self.returncode, self._log_path)
        return f"the rollout server at {self.url} (pid {self.pid}) {end}"

    def terminate(self) -> None:
        """Asks it to end; see `close`."""
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Ends it, gently for a while; may be called again."""
        self.terminate()
        try:
            self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


def _listener(host: str, port: int) -> socket.socket:
    """Binds the address here, so that the port cannot be taken while the server starts."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(
            f"a server cannot listen on {host}:{port} ({error.strerror}): choose another port, or "
            "0 for a free one."
        ) from None
    return listener
