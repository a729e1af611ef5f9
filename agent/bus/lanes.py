"""Pure: what one instance is to get, who takes it here, and when something is tried again."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.bus.values import Delivery

Send = Callable[[int, Delivery, bytes], None]


@dataclass(eq=False)
class Consumer:
    """A replica that takes messages: at most `window` of them are on their way to it."""

    instance: str
    window: int
    send: Send
    held: dict[int, Delivery] = field(default_factory=dict)  # in the order they were sent
    numbers: int = 0

    @property
    def free(self) -> int:
        return self.window - len(self.held)

    def give(self, delivery: Delivery, body: bytes) -> None:
        """The message is on its way to the replica."""
        self.numbers += 1
        self.held[self.numbers] = delivery
        self.send(self.numbers, delivery, body)


@dataclass(eq=False)
class Lane:
    """The messages of one instance on this node: ready ones in order, delayed ones by time, others held by consumers."""

    instance: str
    ready: deque[Delivery] = field(default_factory=deque)
    consumers: list[Consumer] = field(default_factory=list)
    moving: tuple[Delivery, ...] = ()  # taken out of `ready`, on their way to a consumer or to another node
    away_since: float = 0.0  # when the last consumer left
    not_before: float = 0.0  # no other node is asked earlier
    refusals: int = 0  # how often handing on failed in a row
    orphan_since: float | None = None  # since when it is known that nobody of this name subscribes
    turn: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # something about it has changed
    _delayed: list[tuple[float, int, Delivery]] = field(default_factory=list)

    def add(self, delivery: Delivery) -> None:
        """It is delivered in its turn, or not before its time."""
        if delivery.due > delivery.since:
            heapq.heappush(self._delayed, (delivery.due, delivery.seq, delivery))
        else:
            self.ready.append(delivery)

    def later(self, delivery: Delivery, due: float) -> None:
        """It is tried again at this time."""
        delivery.due = due
        heapq.heappush(self._delayed, (due, delivery.seq, delivery))

    def back(self, deliveries: Iterable[Delivery]) -> None:
        """These come first again, in their order."""
        self.ready.extendleft(reversed(list(deliveries)))

    def release(self, now: float) -> float | None:
        """What is due becomes ready; when the next one is, or None."""
        while self._delayed and self._delayed[0][0] <= now:
            self.ready.append(heapq.heappop(self._delayed)[2])
        return self._delayed[0][0] if self._delayed else None

    def take(self) -> list[Delivery]:
        """As many ready messages as consumers have room for."""
        room = sum(max(0, consumer.free) for consumer in self.consumers)
        return [self.ready.popleft() for _ in range(min(room, len(self.ready)))]

    def idlest(self) -> Consumer | None:
        """The consumer with the most room; of equal ones each in its turn."""
        count = len(self.consumers)
        turned = (self.consumers[(self.turn + offset) % count] for offset in range(count))
        best = max(turned, key=lambda consumer: consumer.free, default=None)
        self.turn += 1
        return best if best is not None and best.free > 0 else None

    def waiting(self) -> list[Delivery]:
        """Everything that no consumer holds."""
        return [*self.ready, *(entry[2] for entry in self._delayed)]

    def remove(self, gone: set[Delivery]) -> None:
        """These are not waited for any more."""
        self.ready = deque(delivery for delivery in self.ready if delivery not in gone)
        self._delayed = [entry for entry in self._delayed if entry[2] not in gone]
        heapq.heapify(self._delayed)
