"""Who sees and hears everything that happens in a simulated world, and asks nobody."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from agent.keeper.protocol import HostOrder, HostRow
from agent.leases.peers import Ask
from agent.wire import Assignment, Claim


class Witness(Protocol):
    """Sees everything that happens to processes, and asks nobody."""

    def row(self, node: str, row: HostRow) -> None:
        """A host is in this state now."""

    def starts(self, node: str, order: HostOrder, before: HostRow | None) -> None:
        """An agent starts a host for this order."""

    def stops(self, node: str, row: HostRow) -> None:
        """An agent is about to stop this host."""

    def renames(self, node: str, replica: str, order: HostOrder) -> None:
        """The process of this replica goes on under another name."""

    def hurts(self, node: str, replica: str) -> None:
        """A fault ends this host."""

    def agrees(self, node: str, replica: str, deadline: float) -> None:
        """The keeper is told that a host may live so long because others agree."""

    def fences(self, node: str, row: HostRow, code: str) -> None:
        """The keeper ends this host because its lease is over."""

    def removes(self, node: str, digest: str) -> None:
        """An agent is about to delete this package."""

    def tries(self, node: str, what: str) -> None:
        """An agent tries something that may fail, perhaps again."""

    def off(self, node: str) -> None:
        """The machine died, or nobody can reach it any more."""


class Nobody:
    """A witness that looks away."""

    def row(self, node: str, row: HostRow) -> None: ...

    def starts(self, node: str, order: HostOrder, before: HostRow | None) -> None: ...

    def stops(self, node: str, row: HostRow) -> None: ...

    def renames(self, node: str, replica: str, order: HostOrder) -> None: ...

    def hurts(self, node: str, replica: str) -> None: ...

    def agrees(self, node: str, replica: str, deadline: float) -> None: ...

    def fences(self, node: str, row: HostRow, code: str) -> None: ...

    def removes(self, node: str, digest: str) -> None: ...

    def tries(self, node: str, what: str) -> None: ...

    def off(self, node: str) -> None: ...


class Watcher(Witness, Protocol):
    """Sees machines, and hears what is said to agents and to Consul."""

    def sent(self, controller: str, node: str, assignment: Assignment) -> None: ...

    def claimed(self, controller: str, node: str, claim: Claim) -> None: ...

    def promised(self, node: str, ask: Ask, sent: float) -> None: ...

    def accepted(self, controller: str, node: str, assignment: Assignment) -> None: ...

    def forgot(self, node: str) -> None: ...

    def wrote(self, text: bytes) -> None: ...

    def called(self, who: str) -> None: ...

    def renewed(self, node: str, session: str, until: float) -> None: ...

    def frees(self, node: str, keys: Collection[str]) -> None: ...

    def deletes(self, who: str, key: str) -> None: ...

    def forgets(self) -> None: ...

    def died(self, who: str, error: BaseException) -> None: ...


class LooksAway(Nobody):
    """A watcher that sees and hears nothing."""

    def sent(self, controller: str, node: str, assignment: Assignment) -> None: ...

    def claimed(self, controller: str, node: str, claim: Claim) -> None: ...

    def promised(self, node: str, ask: Ask, sent: float) -> None: ...

    def accepted(self, controller: str, node: str, assignment: Assignment) -> None: ...

    def forgot(self, node: str) -> None: ...

    def wrote(self, text: bytes) -> None: ...

    def called(self, who: str) -> None: ...

    def renewed(self, node: str, session: str, until: float) -> None: ...

    def frees(self, node: str, keys: Collection[str]) -> None: ...

    def deletes(self, who: str, key: str) -> None: ...

    def forgets(self) -> None: ...

    def died(self, who: str, error: BaseException) -> None: ...
