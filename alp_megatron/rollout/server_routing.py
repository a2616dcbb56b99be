"""Requests to the least loaded server; those of a server that dies go to another one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from alp_megatron.rollout.server_client import ServerLost


class Routable(Protocol):
    """A server, as the routing sees it."""

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
