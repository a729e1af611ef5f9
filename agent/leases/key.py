"""The key of one lease in Consul, as this node reads and writes it; no question lasts longer than a renewal may."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import TypeVar

from agent import keys
from agent.consul.protocol import KeyValue, SessionGone
from agent.leases.values import Record, Token
from agent.leases.world import World

T = TypeVar("T")

LOOK = 10.0  # seconds a watch on a lock held elsewhere lasts


class LeaseKey:
    """Words with Consul about one lease. All raise what Consul cannot do, TimeoutError among it."""

    def __init__(self, replica: str, world: World) -> None:
        self._world = world
        self._key = keys.lease(world.cluster, replica)

    async def read(self) -> KeyValue | None:
        """The key as it is now."""
        return await self._ask(self._world.consul.get(self._key))

    async def moved(self, entry: KeyValue) -> None:
        """Returns when the key is another one than this, or after a while."""
        await self._world.consul.watch(self._key, entry.modify_index, LOOK)

    async def acquire(self, index: int, token: Token, eligible: Mapping[str, str]) -> bool:
        """Whether the lock is ours now, with this written on it."""
        record = self._record(index, token, eligible)
        return await self._ask(self._world.consul.acquire(self._key, record.encode(), self._world.session.id))

    async def release(self, index: int, token: Token, eligible: Mapping[str, str], *, clean: bool = False) -> None:
        """The lock is free; `clean` says that nothing is left of what ran under it."""
        record = replace(self._record(index, token, eligible), released_clean=clean)
        await self._ask(self._world.consul.release(self._key, record.encode(), self._world.session.id))

    async def session_is_gone(self) -> bool:
        """Whether our session has ended since its last renewal: then the lock is free without anybody's doing."""
        try:
            await self._ask(self._world.consul.session_renew(self._world.session.id))
        except SessionGone:
            return True
        return False

    async def epoch(self) -> KeyValue | None:
        """The epoch of the cluster; None when Consul was wiped and no leader has made a new one."""
        return await self._ask(self._world.consul.get(keys.epoch(self._world.cluster)))

    async def _ask(self, question: Awaitable[T]) -> T:
        async with asyncio.timeout(self._world.session.figures.http_timeout):
            return await question

    def _record(self, index: int, token: Token, eligible: Mapping[str, str]) -> Record:
        world = self._world
        return Record(
            node=world.node,
            session=world.session.id,
            lock_index=index,
            token=token,
            lock_delay=world.session.figures.lock_delay,
            since=f"{world.clock.wall():%Y-%m-%dT%H:%M:%SZ}",
            eligible=eligible,
        )
