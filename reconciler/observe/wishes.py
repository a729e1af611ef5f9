"""Pure: what people want of nodes, as it is written in Consul (`record/nodes/<node>`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from agent.clock import Monotonic
from reconciler.model.observed import NodeWish

FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, slots=True)
class Written:
    """A wish with the time of day of its deadline, as controllers that come later must understand it."""

    who: str
    why: str
    since: datetime
    drain: bool = False
    deadline: datetime | None = None

    def text(self) -> bytes:
        fields = {
            "who": self.who,
            "why": self.why,
            "since": self.since.strftime(FORMAT),
            "drain": self.drain,
            "deadline": None if self.deadline is None else self.deadline.strftime(FORMAT),
        }
        return json.dumps(fields, ensure_ascii=False).encode()


UNREADABLE = NodeWish("somebody", "what is written in Consul makes no sense; `tdie uncordon` removes it")


def read(value: bytes, wall: datetime, now: Monotonic) -> NodeWish:
    """The wish, its deadline on our clock. A value that makes no sense is still a wish: nothing new there, nothing moved away."""
    try:
        fields = json.loads(value)
        until = fields["deadline"]
        deadline = None if until is None else datetime.strptime(until, FORMAT).replace(tzinfo=UTC)
        return NodeWish(
            who=str(fields["who"]),
            why=str(fields["why"]),
            since=str(fields["since"]),
            drain=fields["drain"] is True,
            deadline=None if deadline is None else Monotonic(now + (deadline - wall).total_seconds()),
        )
    except (ValueError, KeyError, TypeError):
        return UNREADABLE
