"""Everything the loop reaches outside itself, as constructor arguments: the same loop runs on virtual time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agent.client import NodeApi
from agent.clock import Clock
from agent.consul.protocol import Consul
from reconciler.model.rollback import Rollback
from reconciler.source.sourced import Sourced


class Source(Protocol):
    """Git, as the loop uses it."""

    async def look(self, *, fetch: bool = True, rollback: Rollback | None = None) -> Sourced:
        """What is in force now; a bad or unreachable commit leaves the last good one in force and says so, and under a
        rollback the commit it names is in force until the tip is a good one that is not quarantined."""
        ...

    async def load(self, revision: str) -> Sourced:
        """What any revision asks for, without touching what is in force."""
        ...

    async def is_earlier(self, commit: str, than: str) -> bool:
        """Whether a commit is part of the history of another one."""
        ...

    async def changed(self) -> None:
        """Returns when the ref may have moved, or the interval has passed."""
        ...

    async def start_from(self, commit: str) -> None:
        """A controller that takes over starts from the commit that was in force."""
        ...


@dataclass(frozen=True, slots=True)
class Edges:
    """The world of one controller."""

    source: Source
    consul: Consul
    nodes: NodeApi
    clock: Clock
    package_url: Callable[[str], str]  # digest → URL at which this controller serves it
