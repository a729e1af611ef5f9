"""A lane at work: what is ready goes to replicas of this node, or to a node that has one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol
from zlib import crc32

import structlog

from agent.bus.bus import LOOK, Bus
from agent.bus.lanes import Lane
from agent.bus.values import Delivery, Envelope
from agent.errors import TdieError, Waiting

log = structlog.get_logger("bus")

TOGETHER, TOGETHER_BYTES = 200, 1 << 20  # messages handed on in one request
_ASK_AGAIN = 3.0  # seconds until another node is looked for when there was none
_SCANNED = 1000  # messages looked at for those that go to the same node


class Directory(Protocol):
    """Where replicas are that take messages. Knows the last answer when Consul is away."""

    async def nodes(self, instance: str) -> Mapping[str, str]:
        """Nodes with a healthy replica of the instance, and the URL of their API; this node is not among them."""
        ...


class Peers(Protocol):
    """The way to the buses of other nodes."""

    async def send(self, api: str, node: str, envelopes: Sequence[Envelope]) -> None:
        """They are on disk there. Raises TdieError; then they may be. Whoever is not this node refuses them."""
        ...


class Deliverer:
    """Serves the lanes of one bus."""

    def __init__(self, bus: Bus, directory: Directory, peers: Peers) -> None:
        self._bus, self._directory, self._peers = bus, directory, peers

    async def serve(self, lane: Lane) -> None:
        """Give or hand on what is ready, for ever."""
        now = self._bus.clock.now
        while True:
            lane.wake.clear()
            moments = [lane.release(now())]
            if lane.ready and lane.consumers:
                moments.append(await self._give(lane))
            elif lane.ready:
                moments.append(await self._elsewhere(lane))
            lane.moving = ()
            until = min((moment for moment in moments if moment is not None), default=None)
            try:
                async with asyncio.timeout(None if until is None else max(0.0, until - now())):
                    await lane.wake.wait()
            except TimeoutError:
                continue

    async def _give(self, lane: Lane) -> float | None:
        """Consumers get as much as they have room for; when to try again if the file cannot be read."""
        taken = lane.take()
        lane.moving = tuple(taken)
        try:
            bodies = await self._bus.bodies(taken)
        except Waiting as error:
            self._bus.problem(error.code, error.detail)
            lane.moving = ()
            lane.back(taken)
            return self._bus.clock.now() + 1.0
        for at, delivery in enumerate(taken):
            consumer = lane.idlest()
            if consumer is None:  # it left meanwhile
                lane.moving = ()
                lane.back(taken[at:])
                break
            lane.moving = lane.moving[1:]
            consumer.give(delivery, bodies[delivery.seq])
        return None

    async def _elsewhere(self, lane: Lane) -> float | None:
        """Messages that no replica here takes go to a node that has one; when to look again."""
        bus, now = self._bus, self._bus.clock.now()
        patience = bus.limits.away if bus.routes.local(lane.instance) else 0.0
        not_before = max(lane.not_before, lane.away_since + patience if patience else 0.0)
        if now < not_before:
            return not_before
        nodes = await self._directory.nodes(lane.instance)
        if not nodes:
            lane.not_before = now + _ASK_AGAIN
        elif not lane.consumers and lane.ready:
            await self._hand_on(lane, nodes)
        return max(now, lane.not_before)

    async def _hand_on(self, lane: Lane, nodes: Mapping[str, str]) -> None:
        """One batch is on another node. A message that is tried again goes to the same node, if that is still there."""
        node, batch = _batch(lane, sorted(nodes))
        lane.remove(set(batch))
        lane.moving = tuple(batch)
        try:
            bodies = await self._bus.bodies(batch)
            for delivery in batch:
                delivery.sent_to = node
            with self._bus.leaving(batch):
                await self._peers.send(nodes[node], node, [_envelope(d, bodies[d.seq]) for d in batch])
                self._gone(batch)
        except TdieError as error:
            lane.moving = ()
            lane.back(batch)
            lane.refusals += 1
            lane.not_before = self._bus.clock.now() + min(LOOK, 0.25 * 2 ** min(lane.refusals, 10))
            log.info("not handed on", node=node, instance=lane.instance, messages=len(batch), error=str(error))
            return
        lane.refusals = 0

    def _gone(self, batch: Sequence[Delivery]) -> None:
        self._bus.counters.forwarded += len(batch)
        keys, ids = [(d.seq, d.instance) for d in batch], [d.id for d in batch]
        for delivery in batch:
            self._bus.let_go(delivery)
        self._bus.write(self._bus.store.do(lambda file: file.handed_on(keys, ids)))


def _batch(lane: Lane, names: Sequence[str]) -> tuple[str, list[Delivery]]:
    """The node the first message goes to, and the next ones that go there too."""
    node = _target(lane.ready[0], names)
    batch: list[Delivery] = []
    size = 0
    for at in range(min(_SCANNED, len(lane.ready))):
        delivery = lane.ready[at]
        if _target(delivery, names) != node:
            continue
        if batch and (len(batch) >= TOGETHER or size + delivery.size > TOGETHER_BYTES):
            break
        batch.append(delivery)
        size += delivery.size
    return node, batch


def _target(delivery: Delivery, names: Sequence[str]) -> str:
    """The node that may have it already, else one that follows from its id."""
    if delivery.sent_to in names:
        return delivery.sent_to
    return names[crc32(delivery.id.encode()) % len(names)]


def _envelope(delivery: Delivery, body: bytes) -> Envelope:
    return Envelope(delivery.id, delivery.topic, delivery.type, body, (delivery.instance,), delivery.hops + 1)
