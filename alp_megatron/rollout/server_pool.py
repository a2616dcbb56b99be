"""The servers of an engine: which of them are ready, and what becomes of one that is lost."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from alp_megatron.rollout.engine import EngineDied, EngineError
from alp_megatron.rollout.server_check import check_reachable, check_server
from alp_megatron.rollout.server_client import ServerLost, healthy, until_healthy, weight_label
from alp_megatron.rollout.server_launch import ServerProcess

FIRST_LABEL = "default"  # vLLM's, for the weights that it loaded at its start


@dataclass
class Server:
    """One server.

    Attributes:
        process: where it is a child of this process; else it was started elsewhere.
        ready: it has answered as a server of this run's model.
        connected: the transport can send it weights.
        serving: it is alive and holds the current weights.
        in_flight: requests that it has not answered yet.
    """

    url: str
    process: ServerProcess | None = None
    ready: bool = False
    connected: bool = False
    serving: bool = False
    in_flight: int = 0

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.returncode is not None


class ServerPool:
    """
    Args:
        identity: what a server must have, see server_identity.
        start: starts the process of server `index`; see ServerProcess.
        count: servers to start, where `urls` is empty.
        urls: servers that were started elsewhere.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        identity: dict[str, Any],
        start: Callable[[int], ServerProcess],
        count: int,
        urls: list[str],
    ):
        self._session, self._identity, self._start = session, identity, start
        processes = [] if urls else [start(index) for index in range(count)]
        self.servers = [Server(process.url, process) for process in processes]
        self.servers += [Server(url.rstrip("/")) for url in urls]

    @property
    def ready(self) -> list[Server]:
        return [server for server in self.servers if server.ready]

    async def join_all(self, label: str, wait: bool) -> None:
        """Lets servers take part that are ready now; `wait` for all of them, at the start.

        Args:
            label: of the current weights; who holds others does not serve.

        Raises UserError if one is not a server of this run, or cannot be reached at the start,
        EngineError if a process of its own cannot start, and EngineDied if no server is ready.
        """
        await asyncio.gather(*(self._join(s, label, wait) for s in self.servers if not s.ready))
        if not self.ready:
            raise EngineDied("no rollout server is left")

    async def _join(self, server: Server, label: str, wait: bool) -> None:
        if wait and server.process:
            await until_healthy(self._session, server.url, lambda: server.ended)
        if server.process and server.ended:
            end = server.process.how_it_ended()
            if wait:
                raise EngineError(end)
            return self.lost(server, end)
        if wait:
            await check_reachable(self._session, server.url, self._identity)
        elif not await healthy(self._session, server.url):
            return
        try:
            await check_server(self._session, server.url, self._identity)
            server.serving = await weight_label(self._session, server.url) == label
        except ServerLost:
            return
        server.ready = True

    def lost(self, server: Server, why: str) -> None:
        """Has a process of its own started again; it joins at the next update."""
        server.ready = server.connected = server.serving = False
        print(f"warning: rollout server {server.url} is lost: {why}", file=sys.stderr, flush=True)
        if server.process:
            server.process.kill()
            server.process = self._start(self.servers.index(server))
            server.url = server.process.url

    def close(self) -> None:
        """Ends the processes that it started; servers that were started elsewhere go on."""
        processes = [server.process for server in self.servers if server.process]
        for process in processes:
            process.terminate()
        for process in processes:
            process.close()
