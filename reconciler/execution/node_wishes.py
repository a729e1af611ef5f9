"""What a person orders of one node: cordon, drain, lock; and takes back. Written under the leader's own lock."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

from agent import keys
from agent.clock import Clock
from agent.consul.protocol import Consul, TxnOp
from agent.errors import Refused
from reconciler.execution import proven
from reconciler.observe.wishes import Written

PATIENCE = 5.0  # seconds a person waits for a controller that is just changing the node
_LOOK = 0.1


class NodeWishes:
    """The wishes of people for the nodes of one cluster, kept in Consul."""

    def __init__(self, cluster: str, *, consul: Consul, clock: Clock) -> None:
        self._cluster = cluster
        self._consul = consul
        self._clock = clock

    async def cordon(
        self, node: str, session: str, *, who: str, why: str, drain: bool = False, within: float | None = None
    ) -> None:
        """Nothing new is placed there; with `drain` everything leaves, in any case after `within` seconds."""
        wall = self._clock.wall()
        deadline = None if within is None else wall + timedelta(seconds=within)
        value = Written(who, why, wall, drain, deadline).text()
        await self._write(TxnOp("set", self._key(node), value), session)

    async def uncordon(self, node: str, session: str) -> None:
        """The node takes new replicas again, as far as Git says so."""
        await self._write(TxnOp("delete", self._key(node)), session)

    async def lock(self, node: str, *, who: str, why: str) -> None:
        """Nothing is changed there until it is unlocked. Refused (NODE_LOCKED) names who holds it already."""
        key = keys.node_lock(self._cluster, node)
        session = await self._consul.session_create(f"tdie operator {who}", ttl=None, lock_delay=0.0)
        value = json.dumps({"who": who, "why": why, "since": f"{self._clock.wall():%Y-%m-%dT%H:%M:%SZ}"}).encode()
        patience = self._clock.now() + PATIENCE
        try:
            while not await self._consul.acquire(key, value, session):
                if self._clock.now() > patience:
                    raise Refused(f"{node} is locked by {await self._holder(node)}", code="NODE_LOCKED")
                await asyncio.sleep(_LOOK)
        except BaseException:
            await self._consul.session_destroy(session)
            raise

    async def unlock(self, node: str, own: str) -> str:
        """Who held the lock; empty when nobody did. Refused when it is the leader (`own` session) who is changing the node."""
        entry = await self._consul.get(keys.node_lock(self._cluster, node))
        if entry is None or entry.session is None:
            return ""
        if entry.session == own:
            raise Refused(f"a controller is changing {node} at the moment", code="NODE_LOCKED", hint="try again")
        held_by = await self._holder(node)
        await self._consul.session_destroy(entry.session)
        return held_by

    async def _holder(self, node: str) -> str:
        entry = await self._consul.get(keys.node_lock(self._cluster, node))
        try:
            value = json.loads(entry.value) if entry else {}
            return f"{value['who']}: {value['why']}"
        except (ValueError, KeyError, TypeError):
            return "somebody"

    async def _write(self, op: TxnOp, session: str) -> None:
        await proven.write(self._consul, proven.leads(self._cluster, session), [op])

    def _key(self, node: str) -> str:
        return keys.record(self._cluster, "nodes", node)
