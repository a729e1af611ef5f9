"""Pure: which instances get a message, from what Consul said last and what this node was told to run."""

from __future__ import annotations

from collections.abc import Mapping

from agent.bus.table import Table
from agent.sdk.message import Subscription

_REMEMBERED = 10_000  # pairs of topic and type


class Routes:
    """The subscribers of each topic and type. `read_at` is the local time at which the table was read last."""

    def __init__(self) -> None:
        self.read_at = 0.0
        self._table: Table | None = None
        self._local: Mapping[str, tuple[Subscription, ...]] = {}
        self._found: dict[tuple[str, str], tuple[str, ...]] = {}

    @property
    def known(self) -> bool:
        """Whether a table was ever read."""
        return self._table is not None

    def read(self, table: Table, now: float) -> bool:
        """This is what Consul says now; True if that is news."""
        self.read_at = now
        return self.remembered(table)

    def remembered(self, table: Table) -> bool:
        """This is what Consul said once."""
        news = table != self._table
        self._table = table
        self._found.clear()
        return news

    def told(self, local: Mapping[str, tuple[Subscription, ...]]) -> bool:
        """What the instances subscribe to that this node runs; True if that is news."""
        news = local != self._local
        self._local = local
        self._found.clear()
        return news

    def local(self, instance: str) -> bool:
        """Whether this node was told to run the instance."""
        return instance in self._local

    def subscribes(self, instance: str) -> bool:
        """Whether the instance subscribes to anything."""
        return instance in self._local or (self._table is not None and instance in self._table.subscriptions)

    def renamed(self, instance: str) -> str:
        """What the instance is called now; empty when it still has its name, or is gone."""
        if self._table is None or self.subscribes(instance):
            return ""
        return self._table.renamed.get(instance, "")

    def subscribers(self, topic: str, type: str) -> tuple[str, ...]:
        """Who gets the message. Nobody while no table is known: it must not miss one that could not be read."""
        if self._table is None:
            return ()
        found = self._found.get((topic, type))
        if found is None:
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            found = self._found[topic, type] = self._table.with_local(self._local).subscribers(topic, type)
        return found
