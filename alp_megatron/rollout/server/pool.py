"""The servers of a run: which are ready, who gets which request, what happens to a lost one."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from alp_megatron.rollout.engine import EngineDied, EngineError
from alp_megatron.rollout.server.client import (
    ServerLost,
    check_reachable,
    check_server,
    healthy,
    until_healthy,
    weight_label,
)
from alp_megatron.rollout.server.launch import ServerProcess


class Routable(Protocol):
    """Describes a server, as the routing sees it."""

    serving: bool  # holds the current weights and is alive
    in_flight: int  # requests that it has not answered yet


async def route(
    requests: list[Any],
    servers: list[Routable],
    ask: Callable[[Routable, Any], Awaitable[Any]],
    until_dead: Callable[[Routable], Awaitable[None]],
    lost: Callable[[Routable, str], None],
    most_in_flight: int,
) -> list[Any]:
    """The reply to each request, in their order: each is answered once, by one server.

    Args:
        ask: sends one request to one server. ServerLost has the request asked again elsewhere,
            any other exception ends all.
        until_dead: returns when a server is found dead, though it may have closed no connection.
        lost: is told of a server once, when it stops serving; the text says how.
        most_in_flight: requests that one server gets at a time; the others wait for whichever
            server is free first.

    Raises ServerLost when no server is left.
    """
    waiting = list(enumerate(requests))[::-1]
    replies: dict[int, Any] = {}
    asking: dict[asyncio.Future, tuple[int, Any, Routable]] = {}
    watching = {asyncio.ensure_future(until_dead(s)): s for s in servers if s.serving}
    reason = "no server is serving"

    def give_up(server: Routable, why: str) -> None:
        nonlocal reason
        if not server.serving:
            return
        server.serving, reason = False, why
        for task in [task for task, (*_, other) in asking.items() if other is server]:
            take_back(task)
        lost(server, why)

    def take_back(task: asyncio.Future) -> None:
        index, request, server = asking.pop(task)
        task.cancel()
        server.in_flight -= 1
        waiting.append((index, request))

    try:
        while waiting or asking:
            while waiting and (server := _least_loaded(servers, most_in_flight)):
                index, request = waiting.pop()
                server.in_flight += 1
                asking[asyncio.ensure_future(ask(server, request))] = (index, request, server)
            if not asking:
                raise ServerLost(reason)
            await asyncio.wait([*asking, *watching], return_when=asyncio.FIRST_COMPLETED)
            for task, error in [(t, t.exception()) for t in asking if t.done()]:
                if task not in asking:  # taken back with its server, a few lines below
                    continue
                index, _, server = asking[task]
                if error is None:
                    replies[index] = task.result()
                    del asking[task]
                    server.in_flight -= 1
                elif isinstance(error, ServerLost):
                    take_back(task)
                    give_up(server, str(error))
                else:
                    raise error
            for task in [task for task in watching if task.done()]:
                give_up(watching.pop(task), "it does not answer its health check")
    finally:
        for task, (*_, server) in asking.items():
            task.cancel()
            server.in_flight -= 1
        for task in watching:
            task.cancel()
    return [replies[index] for index in range(len(requests))]


def _least_loaded(servers: list[Routable], most_in_flight: int) -> Routable | None:
    free = [s for s in servers if s.serving and s.in_flight < most_in_flight]
    return min(free, key=lambda server: server.in_flight, default=None)


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
        identity: what a server must have, see rollout/identity.py.
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
