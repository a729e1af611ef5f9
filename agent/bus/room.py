"""Pure: how much a node's bus holds, and whether more fits. What does not fit waits where it was made."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from agent.bus.values import Limits


@dataclass(slots=True)
class _Use:
    count: int = 0
    bytes: int = 0


@dataclass
class Room:
    """Messages and bytes held, by topic and as a whole; dead letters count too."""

    limits: Limits
    topics: defaultdict[str, _Use] = field(default_factory=lambda: defaultdict(_Use))
    count: int = 0
    bytes: int = 0
    _freed: asyncio.Event = field(default_factory=asyncio.Event)

    def fits(self, topic: str, size: int) -> bool:
        """Whether a message of this size may come in. One always fits in an empty topic."""
        use, limits = self.topics[topic], self.limits
        return (
            use.count < limits.topic_count
            and (use.bytes + size <= limits.topic_bytes or not use.count)
            and self.count < limits.node_count
            and (self.bytes + size <= limits.node_bytes or not self.count)
        )

    async def wait(self, topic: str, size: int) -> None:
        """Returns when there is room for it."""
        while not self.fits(topic, size):
            self._freed.clear()
            await self._freed.wait()

    def take(self, topic: str, size: int) -> None:
        use = self.topics[topic]
        use.count += 1
        use.bytes += size
        self.count += 1
        self.bytes += size

    def give(self, topic: str, size: int) -> None:
        use = self.topics[topic]
        use.count -= 1
        use.bytes -= size
        self.count -= 1
        self.bytes -= size
        if not use.count:
            del self.topics[topic]
        self._freed.set()

    def near_limit(self) -> str:
        """What is more than four fifths full, in one sentence; empty when nothing is."""
        limits = self.limits
        found = [
            f"topic '{topic}' holds {use.count} messages, {use.bytes >> 20} MiB"
            for topic, use in sorted(self.topics.items())
            if use.count > 0.8 * limits.topic_count or use.bytes > 0.8 * limits.topic_bytes
        ]
        if self.count > 0.8 * limits.node_count or self.bytes > 0.8 * limits.node_bytes:
            found.append(f"this node holds {self.count} messages, {self.bytes >> 20} MiB")
        return "; ".join(found) and f"publishing soon waits, or waits already: {'; '.join(found)}"
