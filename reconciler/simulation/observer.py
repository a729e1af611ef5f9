"""What must hold at every moment of a history, judged by somebody who sees everything and asks nobody (FAULTS §3)."""

from __future__ import annotations

from collections.abc import Collection

from agent.clock import Clock
from agent.keeper.protocol import HostOrder, HostRow
from agent.leases.peers import Ask
from agent.wire import Assignment, Claim
from reconciler.simulation.leases import Leases
from reconciler.simulation.orders import Orders
from reconciler.simulation.processes import Processes
from reconciler.simulation.truth import Surroundings, Truth

PROMISES = {
    "one process of a leased replica": 1,
    "leased processes end in time": 2,
    "a lock is given back when nothing is left": 3,
    "tokens only grow": 4,
    "a replaced leader is not obeyed": 5,
    "nothing is sent without certainty": 5,
    "nothing is obeyed too late": 5,
    "numbers only grow": 6,
    "never back to an older commit": 6,
    "never more than maxParallel away": 7,
    "what is missed counts": 7,
    "what it depends on is ready first": 8,
    "an earlier wave comes first": 8,
    "nothing stops without a cause": 9,
    "a lease is lost for a reason": 9,
    "nothing starts that nobody wants": 9,
    "a wanted replica keeps a home": 9,
    "moved only when lost or told to": 9,
    "never pruned beyond the limit": 10,
    "trouble with Git changes nothing": 10,
    "what others started is left alone": 11,
    "what runs is installed": 12,
    "no package is deleted while it is used": 12,
    "no secret in Consul": 13,
    "everything comes to rest": 22,
    "what runs is what is wanted": 22,
    "Consul shows what runs": 22,
    "one controller leads": 23,
    "no storm of orders": 24,
    "nothing is tried again and again": 24,
    "Consul is not asked again and again": 24,
    "an agent's restart touches nothing": 25,
    "nobody dies of an error": 24,
}
"""Each promise with its number in FAULTS §3."""

CALLS = (400, 10.0)  # of one client to Consul, within seconds


class Observer:
    """Watches processes, packages, assignments and Consul; `truth.violations` is empty while every promise is kept."""

    def __init__(self, clock: Clock, world: Surroundings, cluster: str, secret: str) -> None:
        """`secret` must not be seen anywhere outside of assignments and hosts."""
        self.truth = Truth(clock, world)
        self._orders = Orders(self.truth)
        self._processes = Processes(self.truth)
        self._leases = Leases(self.truth, cluster)
        self._secret = secret.encode()
        self._calls: dict[str, list[float]] = {}

    # ------------------------------------------------------------------------------------------- machines

    def row(self, node: str, row: HostRow) -> None:
        self._processes.row(node, row)
        self._leases.row(node, row)

    def starts(self, node: str, order: HostOrder, before: HostRow | None) -> None:
        self._processes.starts(node, order, before)

    def stops(self, node: str, row: HostRow) -> None:
        self._processes.stops(node, row)

    def renames(self, node: str, replica: str, order: HostOrder) -> None:
        self._processes.renames(node, replica, order)

    def hurts(self, node: str, replica: str) -> None:
        self._processes.hurts(node, replica)

    def agrees(self, node: str, replica: str, deadline: float) -> None:
        self._leases.agrees(node, replica, deadline)

    def fences(self, node: str, row: HostRow, code: str) -> None:
        self._processes.hurts(node, row.replica)
        self._leases.fences(node, row, code)

    def removes(self, node: str, digest: str) -> None:
        self._processes.removes(node, digest)

    def tries(self, node: str, what: str) -> None:
        self._processes.tries(node, what)

    def off(self, node: str) -> None:
        self._processes.off(node)

    # ------------------------------------------------------------------------------------------- what is said

    def sent(self, controller: str, node: str, assignment: Assignment) -> None:
        self._orders.sent(controller, node, assignment)

    def promised(self, node: str, ask: Ask, sent: float) -> None:
        self._leases.promised(node, ask, sent)

    def claimed(self, controller: str, node: str, claim: Claim) -> None:
        self._orders.claimed(controller, node, claim.epoch)

    def accepted(self, controller: str, node: str, assignment: Assignment) -> None:
        self._orders.accepted(controller, node, assignment)

    def forgot(self, node: str) -> None:
        self._orders.forgot(node)

    def died(self, who: str, error: BaseException) -> None:
        """An agent or a controller ended by itself."""
        self.truth.broken("nobody dies of an error", f"{who}: {_leaf(error)!r}")

    # ------------------------------------------------------------------------------------------- Consul

    def renewed(self, node: str, session: str, until: float) -> None:
        self._leases.renewed(node, session, until)

    def frees(self, node: str, keys: Collection[str]) -> None:
        self._leases.frees(node, keys)

    def deletes(self, who: str, key: str) -> None:
        self._leases.deletes(who, key)

    def forgets(self) -> None:
        """Consul is about to lose its data."""
        self._orders.forgets()
        self._leases.forgets()

    def meddled(self, replica: str) -> None:
        """A fault laid hands on the lock of a replica."""
        self._leases.meddled(replica)

    def wrote(self, text: bytes) -> None:
        """Somebody wrote this to Consul."""
        if self._secret and self._secret in text:
            self.truth.broken("no secret in Consul", text[:80].decode(errors="replace"))

    def called(self, who: str) -> None:
        """Somebody asked Consul something."""
        now, (most, within) = self.truth.clock.now(), CALLS
        recent = self._calls.setdefault(who, [])
        recent.append(now)
        if len(recent) > most:
            if now - recent[0] < within:
                self.truth.broken("Consul is not asked again and again", f"{who}: {most} calls within {within:g} s")
            recent.clear()


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
