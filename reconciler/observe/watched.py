"""Keys of Consul that are followed while this controller leads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import structlog

from agent.consul.protocol import Consul, KeyValue
from agent.errors import TdieError

log = structlog.get_logger("observe")

WATCH = 55.0  # seconds; longer than a beat, shorter than what proxies cut
AGAIN = 1.0  # … between tries to reach Consul


async def keys_below(consul: Consul, prefix: str) -> AsyncIterator[Mapping[str, KeyValue]]:
    """All keys below a prefix, by what follows it, now and each time they may have changed; nothing while Consul is away."""
    index, said = 0, ""
    while True:
        try:
            index, entries = await consul.watch_all(prefix, index, WATCH)
        except TdieError as error:
            if said != (said := str(error)):
                log.warning("keys cannot be followed", prefix=prefix, error=said)
            index = 0
            await asyncio.sleep(AGAIN)
            continue
        yield {entry.key.removeprefix(prefix): entry for entry in entries}
