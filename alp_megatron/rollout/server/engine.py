"""Several vLLM servers as one rollout engine."""

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import aiohttp
from torch import Tensor

from alp_megatron.data.trajectory import Trajectory
from alp_megatron.errors import UserError
from alp_megatron.rollout.engine import (
    EngineDied,
    EngineError,
    SamplingSpec,
    check_lengths,
    sampling_parameters,
    scoring_parameters,
)
from alp_megatron.rollout.identity import identity
from alp_megatron.rollout.server.client import (
    ServerLost,
    new_session,
    post,
    until_unhealthy,
)
from alp_megatron.rollout.server.launch import ServerProcess
from alp_megatron.rollout.server.pool import FIRST_LABEL, Server, ServerPool, route
from alp_megatron.rollout.server.update import HttpReceivers, update_servers
from alp_megatron.rollout.settings import EngineSettings
from alp_megatron.weights.quantize.scheme import UNQUANTIZED
from alp_megatron.weights.transport.buckets import Transport

SEQUENCES_IN_FLIGHT = 256  # of one server: what vLLM computes together


class ServerEngine:
    """A RolloutEngine. Use it from the thread that made it.

    A server that dies while it works is replaced (its process) or waited for (its address), and
    joins again at the next weight update; its unanswered requests go to the others.

    The same call gives the same samples up to rounding: which requests are computed together
    depends on which server is free.

    Args:
        transport_name: the one in RECEIVERS of vllm/receivers.py that belongs to `transport`.
        start, count, urls: see ServerPool.
    """

    def __init__(
        self,
        settings: EngineSettings,
        transport: Transport,
        transport_name: str,
        start: Callable[[int], ServerProcess],
        count: int,
        urls: list[str],
    ):
        self._max_model_len = settings.max_model_len
        self._transport = transport
        self._label = FIRST_LABEL
        self._version = 0
        # A quantised server starts with random weights, see vllm_arguments.
        self._whole = settings.quantization == UNQUANTIZED
        self._started = False
        self._runner = asyncio.Runner()
        self._session = self._run(_session())
        ours = identity(settings, transport_name)
        self._pool = ServerPool(self._session, ours, start, count, urls)

    @property
    def servers(self) -> list[Server]:
        return self._pool.servers

    def wait_ready(self) -> None:
        if self._started:
            return
        try:
            self._run(self._pool.join_all(self._label, wait=True))
        except (EngineError, UserError):
            self.close()
            raise
        self._started = True

    def generate(self, prompts: list[list[int]], sampling: SamplingSpec) -> list[list[Trajectory]]:
        check_lengths("prompt", prompts, self._max_model_len - 1)
        requests = [
            {
                "token_ids": prompt,
                "sampling_params": sampling_parameters(sampling, prompt, self._max_model_len)
                | {"seed": _seed(sampling.seed, index)},
            }
            for index, prompt in enumerate(prompts)
        ]
        replies = self._ask(requests, max(1, SEQUENCES_IN_FLIGHT // sampling.n))
        return [
            [
                self._trajectory(choice, prompt, group * sampling.n + index, group)
                for index, choice in enumerate(reply["choices"])
            ]
            for group, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
        ]

    def score(self, sequences: list[list[int]]) -> list[list[float]]:
        check_lengths("sequence", sequences, self._max_model_len)
        parameters = scoring_parameters()
        requests = [{"token_ids": ids, "sampling_params": parameters} for ids in sequences]
        replies = self._ask(requests, SEQUENCES_IN_FLIGHT)
        return [
            [found[str(token)]["logprob"] for token, found in pairs]
            for pairs in (
                zip(ids[1:], reply["prompt_logprobs"][1:], strict=True)
                for ids, reply in zip(sequences, replies, strict=True)
            )
        ]

    def update_weights(
        self, tensors: Iterable[tuple[str, Tensor]], version: int, digests: bool = False
    ) -> dict[str, str]:
        self.wait_ready()
        self._run(self._pool.join_all(self._label, wait=False))
        self._whole = False
        receivers = HttpReceivers(
            self._pool.ready,
            self._session,
            self._run,
            self._pool.lost,
            self._transport.collective,
        )
        if not all(server.connected for server in receivers.servers):
            self._transport.connect(receivers)
        for server in self.servers:
            server.serving = False
            server.connected = server in receivers.servers
        received = update_servers(receivers, self._transport, tensors, version, digests)
        for server in receivers.servers:
            server.serving = True
        self._version, self._label, self._whole = version, str(version), True
        return _agreed(received)

    def close(self) -> None:
        """Ends the processes that it started; servers that were started elsewhere go on."""
        self._pool.close()
        if not self._session.closed:
            self._run(self._session.close())
            self._runner.close()
        self._transport.close()

    def __enter__(self) -> "ServerEngine":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _run(self, coroutine) -> Any:
        return self._runner.run(coroutine)

    def _ask(self, requests: list[dict], most_in_flight: int) -> list[dict]:
        self.wait_ready()
        if not self._whole:
            raise EngineError(
                "the engine's weights are not whole: it waits for a whole weight update"
            )

        async def ask(server: Server, request: dict) -> dict:
            return await post(self._session, server.url, "/inference/v1/generate", request)

        async def until_dead(server: Server) -> None:
            await until_unhealthy(self._session, server.url)

        work = route(requests, self.servers, ask, until_dead, self._pool.lost, most_in_flight)
        try:
            return self._run(work)
        except ServerLost as error:
            raise EngineDied(f"no rollout server is left: {error}") from None

    def _trajectory(
        self, choice: dict, prompt: list[int], sample_id: int, group: int
    ) -> Trajectory:
        versions = {span["version"] for span in choice["weight_versions"]}
        if versions != {self._label}:
            raise EngineError(
                f"a rollout server sampled with weights of version {', '.join(sorted(versions))}, "
                f"not {self._label}: does another trainer use it?"
            )
        return Trajectory(
            sample_id=sample_id,
            group_id=group,
            prompt_ids=prompt,
            response_ids=choice["token_ids"],
            loss_mask=[1] * len(choice["token_ids"]),
            rollout_logprobs=[token["logprob"] for token in choice["logprobs"]["content"]],
            policy_version=self._version,
            finished=choice["finish_reason"] == "stop",
        )


def _agreed(received: list[dict[str, str]]) -> dict[str, str]:
    """Returns every server's digests. Raises EngineError naming a tensor of which they differ."""
    first, *others = received
    for other in others:
        for name, digest in first.items():
            if other.get(name) != digest:
                raise EngineError(f"weight update: the servers received different {name}")
    return first


def _seed(seed: int, index: int) -> int:
    """vLLM gives sample j of a request its seed + j: those of the requests must lie far apart."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:7])


async def _session() -> aiohttp.ClientSession:
    return new_session()
