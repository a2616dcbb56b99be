"""One weight update of several servers over HTTP."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import aiohttp
from torch import Tensor

from alp_megatron.rollout.engine import EngineError
from alp_megatron.rollout.server.client import ServerLost, call, post, watched
from alp_megatron.weights.transport.buckets import Transport

UPDATING = "updating"  # the label of weights that are not whole


class HttpReceivers:
    """Implements Receivers for servers. One that is lost on the way is left out from then on.

    Args:
        run: runs a coroutine to its end.
        together: every server must take part to the end, see Transport.collective.
    """

    def __init__(
        self,
        servers: list[Any],
        session: aiohttp.ClientSession,
        run: Callable[[Any], Any],
        lost: Callable[[Any, str], None],
        together: bool,
    ):
        self.servers = list(servers)
        self._session, self._run, self._lost, self._together = session, run, lost, together

    @property
    def count(self) -> int:
        return len(self.servers)

    def connect(self, infos: list[dict[str, Any]]) -> None:
        bodies = [{"init_info": info} for info in infos]
        self.each("/init_weight_transfer_engine", bodies)

    def receive(self, info: dict[str, Any]) -> None:
        self.each("/update_weights", {"update_info": info})

    def each(self, path: str, body: Any = None) -> list[Any]:
        """Posts to every server at once; `body` is one for all, or a list with one for each."""
        bodies = body if isinstance(body, list) else [body] * self.count
        asked = [(post, path, {"body": one}) for one in bodies]
        return self._all(asked)

    def call(self, method: str, **arguments) -> list[Any]:
        return self._all([(call, method, arguments)] * self.count)

    def _all(self, asked: list[tuple[Any, str, dict]]) -> list[Any]:
        servers = list(self.servers)

        async def ask() -> list[Any]:
            coroutines = [
                watched(
                    self._session,
                    server.url,
                    how(self._session, server.url, what, **arguments),
                )
                for server, (how, what, arguments) in zip(servers, asked, strict=True)
            ]
            return await asyncio.gather(*coroutines, return_exceptions=not self._together)

        try:
            replies = self._run(ask())
        except ServerLost as error:
            raise EngineError(f"weight update: {error}, and the others cannot go on") from None
        for server, reply in zip(servers, replies, strict=True):
            if isinstance(reply, ServerLost):
                self.servers.remove(server)
                self._lost(server, str(reply))
            elif isinstance(reply, BaseException):
                raise reply
        if not self.servers:
            raise EngineError("weight update: every server was lost")
        return [reply for reply in replies if not isinstance(reply, ServerLost)]


def update_servers(
    receivers: HttpReceivers,
    transport: Transport,
    tensors: Iterable[tuple[str, Tensor]],
    version: int,
    digests: bool,
) -> list[dict[str, str]]:
    """Pauses, replaces the weights, drops the prefix caches, sets the version, resumes.

    A server whose update fails stays paused, with UPDATING for its version: nobody gets a sample
    of half-replaced weights.

    Returns the digests of each server that has the new weights.
    """
    receivers.each("/pause?mode=wait")
    receivers.each("/update_weight_version", {"new_version": UPDATING})
    receivers.call("expect_update", version=version, digests=digests)
    receivers.each("/start_weight_update")
    transport.send(tensors, version, receivers)
    receivers.each("/finish_weight_update", {"weight_version": str(version)})
    if not all(reply["success"] for reply in receivers.each("/reset_prefix_cache")):
        raise EngineError("weight update: a server could not drop its prefix cache")
    received = receivers.call("received_digests")
    receivers.each("/resume")
    return received
