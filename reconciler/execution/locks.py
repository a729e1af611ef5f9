"""Node locks: every change on a node happens under its lock; whoever else holds it is respected."""

from __future__ import annotations

import json
from collections.abc import Iterable

from agent import keys
from agent.clock import Clock
from agent.consul.protocol import Consul, TxnOp, TxnRefused

BATCH = 64  # operations a Consul transaction may have


class NodeLocks:
    """The node locks that this leadership holds. One Raft write takes or frees up to 64 of them."""

    def __init__(self, cluster: str, session: str, who: str, *, consul: Consul, clock: Clock) -> None:
        self._cluster = cluster
        self._session = session
        self._who = who
        self._consul = consul
        self._clock = clock
        self.held: set[str] = set()

    async def take(self, nodes: Iterable[str], why: str) -> frozenset[str]:
        """Hold the locks of these nodes; returns those that are held now (others are somebody else's)."""
        wanted = sorted(set(nodes))
        missing = [name for name in wanted if name not in self.held]
        for start in range(0, len(missing), BATCH):
            await self._take(missing[start : start + BATCH], why)
        return frozenset(name for name in wanted if name in self.held)

    async def _take(self, names: list[str], why: str) -> None:
        value = self._value(why)
        ops = [TxnOp("lock", keys.node_lock(self._cluster, n), value, session=self._session) for n in names]
        try:
            await self._consul.txn(ops)
            self.held.update(names)
        except TxnRefused:
            for name in names:  # one of them is taken: find out which
                if await self._consul.acquire(keys.node_lock(self._cluster, name), value, self._session):
                    self.held.add(name)

    async def free(self, nodes: Iterable[str]) -> None:
        """Let go of these nodes' locks."""
        names = sorted(self.held.intersection(nodes))
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            ops = [TxnOp("unlock", keys.node_lock(self._cluster, n), b"free", session=self._session) for n in batch]
            try:
                await self._consul.txn(ops)
            except TxnRefused:  # one of them is not ours any more: let go of the others
                for name in batch:
                    await self._consul.release(keys.node_lock(self._cluster, name), b"free", self._session)
            self.held.difference_update(batch)

    def _value(self, why: str) -> bytes:
        since = f"{self._clock.wall():%Y-%m-%dT%H:%M:%SZ}"
        return json.dumps({"who": self._who, "why": why, "since": since}).encode()
