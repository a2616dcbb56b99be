"""The trainer's side of vLLM: starts its process and talks to it."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from alp_megatron.data.trajectory import Trajectory
from alp_megatron.errors import UserError
from alp_megatron.rollout.engine import (
    EngineDied,
    EngineError,
    SamplingSpec,
    check_lengths,
    how_it_ended,
)
from alp_megatron.rollout.settings import EngineSettings
from alp_megatron.rollout.vllm.arguments import child_environment
from alp_megatron.weights.transport import DEFAULT_CAPACITY, SharedBuffer, pack

_GRACE_SECONDS = 10


class VllmEngine:
    """A RolloutEngine. The constructor returns at once, while vLLM starts; see wait_ready.

    Construct it on a thread that lives as long as the engine shall: Linux ends the engine's
    process with that thread. Use it from one thread at a time.

    Args:
        log_path: file that takes all that vLLM prints; appended to.
        buffer_bytes: shared memory through which weights travel.
    """

    def __init__(
        self,
        settings: EngineSettings,
        log_path: str | Path,
        buffer_bytes: int = DEFAULT_CAPACITY,
    ):
        self._max_model_len = settings.max_model_len
        self._log_path = Path(log_path)
        self._ready = False
        self._idle = False  # waits for a request
        self._buffer = SharedBuffer.create(buffer_bytes)
        self._channel, child_end = multiprocessing.Pipe()
        inherited = (child_end.fileno(), self._buffer.fd)
        arguments = map(str, (*inherited, os.getpid()))
        with open(self._log_path, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "alp_megatron.rollout.vllm.process", *arguments],
                env=child_environment(settings, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=inherited,
            )
        child_end.close()
        self._send((settings, buffer_bytes))

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        if not self._ready:
            try:
                self._receive()
            except (EngineError, UserError):
                self.close()
                raise
            self._ready = True

    def generate(self, prompts: list[list[int]], sampling: SamplingSpec) -> list[list[Trajectory]]:
        check_lengths("prompt", prompts, self._max_model_len - 1)
        return self._call("generate", prompts=prompts, sampling=sampling)

    def score(self, sequences: list[list[int]]) -> list[list[float]]:
        check_lengths("sequence", sequences, self._max_model_len)
        return self._call("score", sequences=sequences)

    def update_weights(
        self, tensors: Iterable[tuple[str, Tensor]], version: int, digests: bool = False
    ) -> dict[str, str]:
        self.wait_ready()
        self._send(("update_weights", {"version": version, "digests": digests}))
        buckets = pack(tensors, self._buffer)
        try:
            while (reply := self._receive())[0] == "more":
                self._send(next(buckets, None))
        except EngineError:
            raise
        except BaseException:
            self.close()  # the source failed half-way: the engine waits for what will not come
            raise
        return reply[1]

    def close(self) -> None:
        """Ends the process: an idle one leaves when the channel ends, a busy one is killed."""
        self._channel.close()
        try:
            self._process.wait(_GRACE_SECONDS if self._idle else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._buffer.close()

    def __enter__(self) -> "VllmEngine":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _call(self, method: str, **arguments):
        self.wait_ready()
        self._send((method, arguments))
        return self._receive()[1]

    def _send(self, message) -> None:
        self._idle = False
        try:
            self._channel.send(message)
        except OSError:
            raise self._death() from None

    def _receive(self) -> tuple[str, object]:
        try:
            kind, value = self._channel.recv()
        except (EOFError, OSError):
            raise self._death() from None
        self._idle = kind != "more"
        if kind == "user error":
            raise UserError(value)
        if kind == "error":
            raise EngineError(f"{value} (vLLM's log: {self._log_path})")
        return kind, value

    def _death(self) -> EngineDied:
        self._idle = True  # it leaves by itself; killing it would hide how
        self.close()
        end = how_it_ended(self._process.returncode, self._log_path)
        return EngineDied(f"the rollout engine's process (pid {self.pid}) {end}")
