"""What must hold of leased processes, their deadlines, their locks and their tokens, whatever anybody believes (FAULTS §3, 1–4)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from agent import keys
from agent.keeper.fence import EXPIRED
from agent.keeper.protocol import HostRow
from agent.leases.peers import Ask
from reconciler.simulation.machine import LIVE, Machine
from reconciler.simulation.truth import Truth
from reconciler.simulation.virtual import later

MOMENT = 0.001  # seconds that count as none; looks come twice as late
EARLY = 8.0  # seconds: a renewal more or less, which a keeper may not have heard of
UNSEEN = 300.0  # seconds for which a node may not have seen what became of its locks
MEDDLED = 60.0  # seconds after somebody laid hands on a lock in which it may be lost for that


@dataclass(slots=True)
class Leases:
    """Judges who runs under a lease, and until when."""

    truth: Truth
    cluster: str
    _until: dict[str, float] = field(
        default_factory=dict
    )  # node → when what it last heard of its session ends to be true
    _before: dict[str, tuple[float, float]] = field(
        default_factory=dict
    )  # … and when that was heard, and what it was before
    _session: dict[str, str] = field(default_factory=dict)
    _timed: set[str] = field(default_factory=set)  # nodes whose end of `_until` is waited for
    _tokens: dict[str, tuple[tuple[int, int], str]] = field(
        default_factory=dict
    )  # replica → the highest, and whose it was
    _meddled: dict[str, float] = field(default_factory=dict)  # replica → when somebody laid hands on its lock

    _barred: dict[tuple[str, str], float] = field(default_factory=dict)  # node, replica → until when it promised
    _given: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)  # holder, replica → who promised
    _members: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)  # … and who had to
    _agreed: dict[tuple[str, str], float] = field(default_factory=dict)  # … and until when all of them did

    def renewed(self, node: str, session: str, until: float) -> None:
        """A node has heard that its session lives."""
        self._session[node] = session
        self._before[node] = self.truth.clock.now(), self._until.get(node, 0.0)
        self._until[node] = max(self._until.get(node, 0.0), until)
        if node not in self._timed:
            self._timed.add(node)
            self._wait(node, until)

    def promised(self, node: str, ask: Ask, sent: float) -> None:
        """The node answers that it will not start a replica for a while; asked at `sent`, from when on the holder counts."""
        truth, now, ours = self.truth, self.truth.clock.now(), (ask.holder, ask.replica)
        truth.note("promises", node, ask.holder, ask.replica)
        until, given = sent + ask.seconds, self._given.setdefault(ours, {})
        self._barred[node, ask.replica] = max(self._barred.get((node, ask.replica), 0.0), until)
        given[node] = max(given.get(node, 0.0), until)
        members = truth.world.eligible(ask.replica, ask.holder) or self._members.get(ours, frozenset())
        self._members[ours] = members
        others = members - {ask.holder}
        until = min((given.get(member, 0.0) for member in others), default=0.0)
        if until > self._agreed.get(ours, 0.0):
            self._agreed[ours] = until
            later(max(0.0, until - now) + 2 * MOMENT, self._agreement_over, *ours)

    def agrees(self, node: str, replica: str, deadline: float) -> None:
        """A keeper is told that a host may live so long because others agree."""
        row = self.truth.row(node, replica)
        if row is None or row.fenced:
            return  # it is being ended all the same
        late = deadline - self._agreed.get((node, replica), 0.0)
        if late > MOMENT and self.truth.world.eligible(replica, node) != {node}:
            detail = f"{replica} may live on {node} {late:.3f} s longer than all that could run it agreed to"
            self.truth.broken("leased processes end in time", detail)

    def _agreement_over(self, node: str, replica: str) -> None:
        machine, row = self.truth.world.machines[node], self.truth.row(node, replica)
        if row is not None and machine.runs and row.order.lease is not None and row.state in LIVE:
            self._in_time(node, machine, row)

    def meddled(self, replica: str) -> None:
        """Somebody else lays hands on the lock of a replica: what its holder wrote there counts until it can see that."""
        self.truth.note("meddled", replica)
        self._remember(replica)
        self._meddled[replica] = self.truth.clock.now()

    def forgets(self) -> None:
        """What is written on locks is about to be lost."""
        leased = {row.replica for machine in self.truth.world.machines.values() for row in machine.rows.values()}
        for replica in leased:
            self._remember(replica)

    def _remember(self, replica: str) -> None:
        for node in self.truth.world.machines:
            if members := self.truth.world.eligible(replica, node):
                self._members[node, replica] = members

    def row(self, node: str, row: HostRow) -> None:
        if row.order.lease is None or row.state not in LIVE:
            return
        machine = self.truth.world.machines[node]
        if not machine.runs:
            return
        self._in_time(node, machine, row)
        barred = self._barred.get((node, row.replica), 0.0) - self.truth.clock.now()
        if barred > 0 and row.state == "Starting" and node not in self.truth.forgot:
            detail = f"{row.replica} starts on {node}, which promised not to for {barred:.1f} s more"
            self.truth.broken("one process of a leased replica", detail)
        others = [name for each in self.truth.names(row.replica) for name in self._alive(each) if name != node]
        if others and not self._stuck(node, machine, row.replica):
            self.truth.broken("one process of a leased replica", f"{row.replica} runs on {node} and on {others}")
        if row.state != "Stopping":
            self._token(node, row.replica, (row.order.lease.epoch, row.order.lease.index))

    def fences(self, node: str, row: HostRow, code: str) -> None:
        """A leased host is ended because its lease is said to be lost."""
        truth, now, lease = self.truth, self.truth.clock.now(), row.order.lease
        truth.fenced[node, row.replica] = now
        truth.note("fences", node, row.replica, code)
        if lease is None:
            truth.broken("a lease is lost for a reason", f"{row.replica} on {node} has none")
        elif row.pid is None:
            return  # between two processes of a crashed host: nothing was ended
        elif code == EXPIRED:
            heard, before = self._before.get(node, (0.0, 0.0))
            left = (
                before if heard == now else self._until.get(node, 0.0)
            ) - now  # its keeper hears of it a little later
            # A session that was made but could not be written down, or holds nothing yet, keeps no host alive.
            of_use = truth.world.lock_of(row.replica) == self._session.get(node, "none")
            if of_use and left > lease.grace + lease.slack + EARLY:
                truth.broken("a lease is lost for a reason", f"{row.replica} on {node} had {left:.1f} s left")
        elif (
            self._is_certain(node, row.replica)
            and truth.world.lock_of(row.replica) == self._session.get(node, "none")
            and not self._runs_unleased(row.replica)
        ):
            truth.broken("a lease is lost for a reason", f"{row.replica} on {node} ({code}) is still locked by it")

    def frees(self, node: str, locks: Collection[str]) -> None:
        """An agent gives locks back."""
        prefix = keys.leases(self.cluster)
        for key in locks:
            replica = key.removeprefix(prefix)
            row = self.truth.row(node, replica) if node and key.startswith(prefix) else None
            if row is not None and row.order.lease is not None and row.state in LIVE:
                self.truth.broken("a lock is given back when nothing is left", f"{replica} is {row.state} on {node}")

    def deletes(self, who: str, key: str) -> None:
        if key.startswith(keys.leases(self.cluster)):
            self.truth.broken("a lock is given back when nothing is left", f"{who} deletes {key}")

    # ------------------------------------------------------------------------------------------- inside

    def _wait(self, node: str, until: float) -> None:
        later(max(0.0, until - self.truth.clock.now()) + 2 * MOMENT, self._over, node)

    def _over(self, node: str) -> None:
        now, machine = self.truth.clock.now(), self.truth.world.machines[node]
        if self._until[node] >= now:  # renewed since
            self._wait(node, self._until[node])
        elif machine.up and not machine.runs:
            self._wait(node, now + 1.0)  # its keeper has its turn first
        else:
            self._timed.discard(node)
            for row in list(machine.rows.values()) if machine.up else ():
                if row.order.lease is not None and row.state in LIVE:
                    self._in_time(node, machine, row)

    def _in_time(self, node: str, machine: Machine, row: HostRow) -> None:
        ours, alone = (node, row.replica), frozenset({node})
        late = self.truth.clock.now() - max(self._until.get(node, 0.0), self._agreed.get(ours, 0.0))
        if late > MOMENT and self.truth.world.eligible(row.replica, node) == alone:
            return  # nobody else may ever take it
        if late > MOMENT and row.replica not in machine.stuck:
            self.truth.broken("leased processes end in time", f"{row.replica} runs on {node} {late:.3f} s too long")

    def _alive(self, replica: str) -> Iterator[str]:
        for name, row in self.truth.copies(replica):
            machine = self.truth.world.machines[name]
            if row.order.lease is not None and machine.runs and not self._stuck(name, machine, replica):
                yield name

    def _runs_unleased(self, replica: str) -> bool:
        """Whether it is started somewhere without a lease, by a later commit: whoever runs it says no to all that ask."""
        return any(row.order.lease is None for _, row in self.truth.copies(replica))

    def _stuck(self, node: str, machine: Machine, replica: str) -> bool:
        """Nothing kills it, and its node cannot keep its lock any more, or could not: no system helps against that."""
        if replica not in machine.stuck:
            return False
        lost = self.truth.world.lock_of(replica) != self._session.get(node, "none")
        return lost or self._until.get(node, 0.0) < self.truth.clock.now()

    def _is_certain(self, node: str, replica: str) -> bool:
        """Whether nothing has happened that may have cost the node this lease."""
        meddled = self.truth.clock.now() - self._meddled.get(replica, -1e9) < MEDDLED
        return not (meddled or self.truth.world.servers.disturbed(UNSEEN) or node in self.truth.forgot)

    def _token(self, node: str, replica: str, token: tuple[int, int]) -> None:
        """A resource that looks at tokens obeys whoever comes with the highest."""
        highest, whose = self._tokens.get(replica, ((0, 0), node))
        if token < highest or (token == highest and whose != node):
            detail = f"{replica} runs on {node} with {token} after {highest} on {whose}"
            self.truth.broken("tokens only grow", detail)
        else:
            self._tokens[replica] = token, node
