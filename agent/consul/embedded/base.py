"""What all parts of the embedded store share: the index, the clock it is given, the list of unsaved changes, and listeners."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

from agent.consul.embedded.state import Row

Kind = Literal["kv", "tomb", "session", "service", "check", "delay", "name", "event", "meta"]
Listener = Callable[[Kind, str], None]


class Base(ABC):
    """Changes of rows, by kind and id. `changes` collects what is not saved yet; None means the row is gone."""

    def __init__(self, now: Callable[[], float], new_id: Callable[[], str], node: str) -> None:
        self.journaled = True  # False: nobody writes `changes` down, so only the index is in them
        self._due: list[
            tuple[float, Kind, str]
        ] = []  # a heap of when something lapses; what was put off is in it twice
        self.now = now
        self.new_id = new_id
        self.node = node
        self.index = 1
        self.one_index: int | None = None  # all changes of one transaction share it
        self.changes: dict[tuple[Kind, str], Any] = {}
        self.listeners: dict[Listener, None] = {}  # in order

    def bump(self) -> int:
        """The index of the change that is about to happen."""
        self.index = self.index + 1 if self.one_index is None else self.one_index
        self.changes["meta", "index"] = self.index
        return self.index

    def saved(self, kind: Kind, name: str, row: Row | dict[str, Any] | None) -> None:
        """Remember a change for the journal and tell everyone who waits."""
        if self.journaled:
            self.changes[kind, name] = row.body() if isinstance(row, Row) else row
        for listener in tuple(self.listeners):
            listener(kind, name)

    def lapses(self, kind: Kind, name: str, at: float | None) -> None:
        """This row has to be looked at again at that time."""
        if at is not None:
            heapq.heappush(self._due, (at, kind, name))

    def next_due(self) -> float | None:
        """When, on the store's clock, time next has an effect; None: never, as things are."""
        while self._due:
            at, kind, name = self._due[0]
            if self._lapses_at(kind, name, at):
                return at
            heapq.heappop(self._due)
        return None

    @abstractmethod
    def _lapses_at(self, kind: Kind, name: str, at: float) -> bool:
        """Whether a row that was to lapse then still is."""

    def detach(self) -> None:
        """Make this (a copy) independent of whoever listens and of the journal."""
        self.changes = {}
        self.listeners = {}
        self.journaled = False
        self._due = []

    def take_changes(self) -> dict[tuple[Kind, str], Any]:
        """What changed since the last call."""
        taken, self.changes = self.changes, {}
        return taken
