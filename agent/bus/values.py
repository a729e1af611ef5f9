"""Pure: a message on the bus, and what it takes to get rid of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NOBODY = ""  # the instance of a message that nobody subscribes to yet


@dataclass(frozen=True, slots=True)
class Limits:
    """What one node holds, and how long it tries. Counts, bytes, seconds."""

    topic_count: int = 20_000
    topic_bytes: int = 256 << 20
    node_count: int = 100_000
    node_bytes: int = 1 << 30
    cached_bytes: int = 16 << 20  # bodies in memory; the others are read again
    attempts: int = 10  # a message that failed so often becomes a dead letter
    first_pause: float = 0.5
    longest_pause: float = 300.0
    unclaimed: float = 60.0  # a message waits so long for a subscriber that a table on its way may bring
    orphaned: float = 600.0  # … and so long for one that was there and left; then it becomes a dead letter
    away: float = 1.0  # how long a replica of this node may be away before its messages look for another node
    remembered: float = 86_400.0  # ids are known so long …
    remembered_count: int = 500_000  # … and at most so many of them

    def pause_after(self, attempts: int) -> float:
        """Seconds before the next try: 0.5, 1, 2, 4 … 300."""
        return float(min(self.longest_pause, self.first_pause * 2 ** min(attempts - 1, 30)))


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message as it travels: the body is its JSON text."""

    id: str
    topic: str
    type: str
    body: bytes
    instances: tuple[str, ...] = ()  # who is to get it; NOBODY while nobody is known
    hops: int = 0  # how many nodes have handed it on


@dataclass(slots=True, eq=False)
class Delivery:
    """One message for one instance, until a replica has worked on it."""

    seq: int
    instance: str
    id: str
    topic: str
    type: str
    size: int
    accepted: float  # seconds since the epoch, for people
    attempts: int = 0
    hops: int = 0
    error: str = ""
    dead: bool = False
    since: float = 0.0  # local clock: when it came here
    due: float = 0.0  # local clock: not before
    sent_to: str = ""  # the node that may have it already


@dataclass(slots=True)
class Counters:
    """What has happened since the agent started."""

    accepted: int = 0
    duplicates: int = 0
    delivered: int = 0
    failed: int = 0
    forwarded: int = 0
    received: int = 0
    dropped: int = 0
    dead: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """The bus of a node at this moment."""

    counters: Counters
    backlog: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (topic, instance) → messages not dead
    dead_letters: Mapping[tuple[str, str], int] = field(default_factory=dict)
    messages: int = 0
    bytes: int = 0
