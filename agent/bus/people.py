"""What people ask of a node's bus: figures, single messages, and what to do with dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from agent.bus.bus import Bus
from agent.bus.values import NOBODY, Delivery, Figures
from agent.errors import Missing


def figures(bus: Bus) -> Figures:
    """How much waits here, and what has happened."""
    rows = list(everything(bus))
    return Figures(
        bus.counters,
        Counter((d.topic, d.instance) for d in rows if not d.dead),
        Counter((d.topic, d.instance) for d in rows if d.dead),
        bus.room.count,
        bus.room.bytes,
    )


def everything(bus: Bus) -> Iterator[Delivery]:
    """Every message that is not done, once for each instance that is to get it."""
    for lane in bus.lanes.values():
        yield from (*lane.waiting(), *lane.moving)
        for consumer in lane.consumers:
            yield from consumer.held.values()
    yield from bus.dead.values()


def listed(bus: Bus, *, dead: bool | None, topic: str, instance: str, limit: int) -> list[dict[str, Any]]:
    """Messages that fit, dead letters first, then the oldest first."""
    fitting = [
        d
        for d in everything(bus)
        if (dead is None or d.dead is dead) and topic in ("", d.topic) and instance in ("", d.instance)
    ]
    return [row(d) for d in sorted(fitting, key=lambda d: (not d.dead, d.accepted, d.seq))[:limit]]


def named(bus: Bus, id: str) -> list[Delivery]:
    """The deliveries of a message. Missing when it is not here."""
    found = [delivery for delivery in everything(bus) if delivery.id == id]
    if not found:
        raise Missing(f"no message {id!r} waits on this node", code="MESSAGE_UNKNOWN")
    return found


def row(delivery: Delivery) -> dict[str, Any]:
    """A delivery in camelCase JSON."""
    return {
        "id": delivery.id,
        "topic": delivery.topic,
        "type": delivery.type,
        "instance": delivery.instance,
        "state": "dead" if delivery.dead else "unclaimed" if delivery.instance == NOBODY else "waiting",
        "attempts": delivery.attempts,
        "error": delivery.error,
        "bytes": delivery.size,
        "accepted": datetime.fromtimestamp(delivery.accepted, UTC).isoformat(timespec="milliseconds"),
    }


async def retry(bus: Bus, deliveries: Iterable[Delivery]) -> int:
    """The dead letters among these are tried anew, from the first attempt; how many they were."""
    count = 0
    for delivery in deliveries:
        key = (delivery.seq, delivery.instance)
        if bus.dead.get(key) is not delivery:
            continue
        await bus.store.do(lambda file, key=key: file.failed(key, 0, "", dead=False), durable=True)  # type: ignore[misc]
        if bus.dead.pop(key, None) is None:
            continue  # somebody else was faster
        delivery.dead, delivery.attempts, delivery.error, delivery.hops = False, 0, "", 0
        delivery.since = delivery.due = bus.clock.now()
        lane = bus.lane(delivery.instance)
        lane.add(delivery)
        lane.wake.set()
        count += 1
    bus.say_dead()
    return count


async def drop(bus: Bus, deliveries: Sequence[Delivery]) -> int:
    """These are not delivered any more; how many they were. One that a replica works on just now is left to it."""
    count = 0
    for delivery in deliveries:
        lane, key = bus.lane(delivery.instance), (delivery.seq, delivery.instance)
        if key not in bus.dead and delivery not in lane.waiting():
            continue
        bus.dead.pop(key, None)
        lane.remove({delivery})
        bus.let_go(delivery)
        bus.counters.dropped += 1
        count += 1
        await bus.store.do(lambda file, key=key: file.done([key]), durable=True)  # type: ignore[misc]
    bus.say_dead()
    return count
