"""A fleet that does at once what it is told: what is measured over it is the controller alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from agent import keys
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.protocol import Check, Service
from agent.expiry import Expiry
from agent.wire import (
    Accepted,
    Assignment,
    Claim,
    Claimed,
    PackageStatus,
    ReplicaOrder,
    ReplicaState,
    ReplicaStatus,
    Report,
)

WRITES = frozenset({"put", "delete", "txn", "acquire", "release", "register", "deregister", "session_create"})


class CountedConsul:
    """A MemoryConsul that counts what is asked of it. Renewals (`check_update` with an unchanged status) are no writes."""

    def __init__(self, consul: MemoryConsul) -> None:
        self._consul = consul
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self._consul, name)

    @property
    def writes(self) -> int:
        return sum(count for name, count in self.calls.items() if name in WRITES)


class _Node:
    def __init__(self, cluster: str, name: str) -> None:
        self.cluster, self.name = cluster, name
        self.index, self.epoch = 1, 0
        self.assignment: Assignment | None = None
        self.rows: dict[
            str, tuple[ReplicaOrder, int]
        ] = {}  # told as rows, kept small: the memory measured is the controller's
        self.changed = asyncio.Event()

    def report(self, since: int) -> Report:
        held = self.assignment
        return Report(
            cluster=self.cluster,
            node=self.name,
            agent="one",
            boot_id="boot",
            index=self.index,
            base=since,
            at=100.0,
            epoch=self.epoch,
            accepted=Accepted(epoch=held.epoch, generation=held.generation, digest=held.digest) if held else None,
            settled=True,
            packages=tuple(PackageStatus(package=o.package, state="Installed") for o in held.packages) if held else (),
            replicas=tuple(_row(order, index) for order, index in self.rows.values() if index > since),
        )

    def take(self, offered: Assignment) -> None:
        self.assignment = offered
        self.index += 1
        before = self.rows
        self.rows = {}
        for order in offered.replicas:
            old = before.get(order.replica)
            same = old is not None and old[0].spec_hash == order.spec_hash
            self.rows[order.replica] = (order, old[1] if same and old is not None else self.index)
        self.changed.set()
        self.changed = asyncio.Event()


def _row(order: ReplicaOrder, index: int) -> ReplicaStatus:
    return ReplicaStatus(
        replica=order.replica,
        instance=order.instance,
        spec_hash=order.spec_hash,
        package=order.spec.package,
        state=ReplicaState.STARTED,
        healthy=True,
        since=0.0,
        started_at="2026-01-01T00:00:00Z",
        pid=1000,
        port=5000,
        commit=order.commit,
        index=index,
    )


class InstantNodes:
    """Implements NodeApi for any number of nodes; `calls` counts everything but standing polls."""

    def __init__(self, cluster: str, names: list[str]) -> None:
        self._nodes = {f"instant://{name}": _Node(cluster, name) for name in names}
        self.calls = 0

    async def join(self, consul: MemoryConsul, cluster: str) -> None:
        """Consul shows an agent for each node."""
        for api, node in self._nodes.items():
            meta = {keys.CLUSTER_META: cluster, keys.NODE_META: node.name, keys.API_META: api}
            check = Check(id=keys.agent_check_id(cluster, node.name), name="agent", ttl=86_400.0, status="passing")
            service = Service(
                id=keys.agent_service_id(cluster, node.name), name=keys.AGENT_SERVICE, meta=meta, checks=(check,)
            )
            await consul.register(service)

    async def claim(self, api: str, claim: Claim) -> Claimed:
        self.calls += 1
        node = self._nodes[api]
        node.epoch = claim.epoch
        return Claimed(report=node.report(0), assignment=node.assignment)

    async def assign(self, api: str, assignment: Assignment, expiry: Expiry) -> Accepted:
        self.calls += 1
        self._nodes[api].take(assignment)
        return Accepted(epoch=assignment.epoch, generation=assignment.generation, digest=assignment.digest)

    async def report(self, api: str, index: int, wait: float, agent: str) -> Report:
        node = self._nodes[api]
        if index == node.index:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await node.changed.wait()
        return node.report(index)

    async def follow_logs(self, api: str, replica: str, lines: int) -> AsyncIterator[bytes]:
        yield b""

    async def logs(self, api: str, replica: str, lines: int) -> str:
        return ""

    async def kill(self, api: str, package: str, replica: str) -> None:
        return None

    async def close(self) -> None:
        return None


def package_url(_digest: str) -> str:
    return "http://127.0.0.1:1/package"
