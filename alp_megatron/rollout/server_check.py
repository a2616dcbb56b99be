"""Whether a server that was started elsewhere is one that the run can use."""

import asyncio
from typing import Any

import aiohttp

from alp_megatron.config.schema import Config
from alp_megatron.errors import UserError
from alp_megatron.rollout.engine import EngineError
from alp_megatron.rollout.server_client import ServerLost, call, healthy, new_session
from alp_megatron.rollout.server_identity import difference, identity
from alp_megatron.rollout.settings import engine_settings


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
