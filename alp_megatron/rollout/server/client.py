"""HTTP to one vLLM server: what each failure means, and whether the run can use the server."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp

from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.rollout.engine import EngineError
from alp_megatron.rollout.identity import difference, identity
from alp_megatron.rollout.settings import engine_settings

CONNECT_SECONDS = 30
HEALTH_SECONDS = 60  # a busy machine may be slow to answer, a dead server never does
HEALTH_INTERVAL = 5


class ServerLost(Exception):
    """The server cannot be reached, or its engine is dead: its work must be done elsewhere."""


def new_session() -> aiohttp.ClientSession:
    """Without a limit on connections, and a new one for each request: a server may close an idle
    one just when the next request goes out, which looks like its death.
    """
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
    return aiohttp.ClientSession(connector=connector, timeout=timeout)


async def post(session: aiohttp.ClientSession, url: str, path: str, body: Any = None) -> Any:
    """Returns the reply's JSON.

    Raises EngineError with the server's own words where it refuses, and ServerLost.
    """
    try:
        async with session.post(url + path, json=body) as response:
            text = await response.text()
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
        raise ServerLost(f"{url}: {type(error).__name__} {error}") from None
    if response.status < 400:
        try:
            return json.loads(text)
        except ValueError:
            raise EngineError(f"{url}{path}: the reply is not JSON") from None
    if response.status >= 500 and not await healthy(session, url):
        raise ServerLost(f"{url}: its engine is dead")
    raise EngineError(f"{url}{path}: {_message(text)}")


async def call(session: aiohttp.ClientSession, url: str, method: str, **arguments) -> Any:
    """Calls a method of vllm/receivers.py's WorkerExtension; every server has one worker."""
    body = {"method": method, "kwargs": arguments}
    return (await post(session, url, "/collective_rpc", body))["results"][0]


async def healthy(session: aiohttp.ClientSession, url: str) -> bool:
    """Returns whether the server answers, and its engine is alive."""
    timeout = aiohttp.ClientTimeout(total=HEALTH_SECONDS)
    try:
        async with session.get(f"{url}/health", timeout=timeout) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def until_unhealthy(session: aiohttp.ClientSession, url: str) -> None:
    """Returns when the server is not healthy any more, also when it hangs with its connections
    open.
    """
    await asyncio.sleep(HEALTH_INTERVAL)
    while await healthy(session, url):
        await asyncio.sleep(HEALTH_INTERVAL)


async def watched(session: aiohttp.ClientSession, url: str, work: Coroutine[Any, Any, Any]) -> Any:
    """Returns what `work` returns. Raises ServerLost where the server hangs meanwhile."""
    tasks = asyncio.ensure_future(work), asyncio.ensure_future(until_unhealthy(session, url))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ServerLost(f"{url}: it does not answer its health check")
    finally:
        for task in tasks:
            task.cancel()


async def until_healthy(
    session: aiohttp.ClientSession, url: str, ended: Callable[[], bool]
) -> None:
    """Returns when the server is ready, or when `ended()`."""
    while not ended() and not await healthy(session, url):
        await asyncio.sleep(0.1)


async def weight_label(session: aiohttp.ClientSession, url: str) -> str:
    """Returns the version of its weights as text; 'default' before the first update."""
    try:
        async with session.get(f"{url}/weight_info") as response:
            return (await response.json())["weight_version"]
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ServerLost(f"{url}: {type(error).__name__} {error}") from None


def _message(text: str) -> str:
    """Returns the sentence inside vLLM's error reply."""
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return text[:500]
    return message.removeprefix("Call to collective_rpc method failed: ")


def check_server_urls(config: Config) -> None:
    """Raises UserError naming the first of rollout.server_urls that cannot be used."""
    ours = identity(engine_settings(config, "cpu"), config.rollout.transport)

    async def check_all() -> None:
        async with new_session() as session:
            for url in config.rollout.server_urls:
                await check_reachable(session, url.rstrip("/"), ours)

    asyncio.run(check_all())


async def check_reachable(session: aiohttp.ClientSession, url: str, ours: dict[str, Any]) -> None:
    """Raises UserError if the server does not answer, or see check_server."""
    try:
        if await healthy(session, url):
            return await check_server(session, url, ours)
    except ServerLost:
        pass
    raise UserError(
        f"rollout.server_urls: {url} cannot be reached: start it with `alp-megatron serve` or "
        "correct the address."
    )


async def check_server(session: aiohttp.ClientSession, url: str, ours: dict[str, Any]) -> None:
    """Raises UserError if it is not a server that this run can use, and ServerLost."""
    try:
        theirs = await call(session, url, "identity")
    except (EngineError, KeyError, TypeError):
        raise UserError(
            f"rollout.server_urls: {url} was not started by `alp-megatron serve`: start it so."
        ) from None
    what = difference(ours, theirs)
    if what:
        raise UserError(
            f"rollout.server_urls: {url} {what}: start it with `alp-megatron serve` and the run's "
            "configuration."
        )
