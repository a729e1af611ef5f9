"""What must hold at every moment of a history, judged by somebody who sees everything and asks nobody (FAULTS §3)."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agent.clock import Clock
from agent.keeper.protocol import HostRow
from agent.wire import Assignment, ReplicaOrder
from reconciler.model.desired import DesiredState, InstanceSpec
from reconciler.model.where import matches
from reconciler.simulation.hosts import Machine

LIVE = frozenset({"Starting", "Started", "Stopping"})


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken: which one, when, and what was seen."""

    invariant: str
    at: float
    detail: str

    def __str__(self) -> str:
        return f"{self.at:9.3f}  {self.invariant}: {self.detail}"


@dataclass(slots=True)
class Observer:
    """Watches processes and accepted assignments; `violations` is empty as long as every promise is kept."""

    clock: Clock
    machines: Callable[[], Iterable[Machine]]
    drained: Callable[[str], bool] = lambda _node: False
    violations: list[Violation] = field(default_factory=list)
    commits: dict[str, DesiredState] = field(default_factory=dict)  # by id
    _order: dict[str, int] = field(default_factory=dict)
    _assigned: dict[str, Assignment] = field(default_factory=dict)  # by node, what it accepted last
    _away: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # instance → replicas we took away
    _sends: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _trace: hashlib._Hash = field(default_factory=hashlib.sha256)

    def pushed(self, desired: DesiredState) -> None:
        """A good commit arrived in Git."""
        self._order[desired.commit] = len(self._order)
        self.commits[desired.commit] = desired
        self.note("commit", desired.commit)

    def note(self, *what: object) -> None:
        """Belongs to the trace, by which two runs of one seed are compared."""
        self._trace.update(f"{self.clock.now():.6f} {' '.join(map(str, what))}\n".encode())

    @property
    def digest(self) -> str:
        """16 hex digits over everything that happened."""
        return self._trace.hexdigest()[:16]

    # ------------------------------------------------------------------------------------------- processes

    def row(self, node: str, row: HostRow) -> None:
        self.note("row", node, row.replica, row.state, row.healthy, row.spec_hash[:8])
        if row.healthy:
            self._away[row.order.instance].discard(row.replica)

    def off(self, node: str) -> None:
        """The machine died, or nobody can reach it any more."""
        self.note("off", node)
        for entry in self._held(node):
            self._away[entry.instance].discard(entry.replica)  # lost to a fault from here on

    def stops(self, node: str, row: HostRow) -> None:
        self.note("stops", node, row.replica)
        held = self._assigned.get(node)
        entry = next((order for order in self._held(node) if order.replica == row.replica), None)
        if held is None:
            self._broken("nothing stops without a cause", f"{row.replica} on {node}, which accepted no assignment")
        elif entry is not None and entry.spec_hash == row.spec_hash:
            self._broken("nothing stops without a cause", f"{row.replica} on {node} runs exactly what is ordered")
        asked = self.drained(node)  # by a person
        if row.healthy and not asked and not self._healthy_elsewhere(node, row.replica):
            self._take_away(row, held)

    def _take_away(self, row: HostRow, held: Assignment | None) -> None:
        desired = self.commits.get(held.commit) if held is not None else None
        spec = desired.instances.get(row.order.instance) if desired is not None else None
        if desired is None or spec is None or row.replica not in wanted(desired, spec):
            return
        away = self._away[spec.name] = self._away[spec.name] & wanted(desired, spec)
        away.add(row.replica)
        most = max(self._most(commit, spec.name) for commit in self.commits)
        if len(away) > most:
            self._broken("never more than maxParallel away", f"{spec.name}: {sorted(away)} of at most {most}")

    def _most(self, commit: str, instance: str) -> int:
        desired = self.commits[commit]
        spec = desired.instances.get(instance)
        return 0 if spec is None else max(1, spec.update.max_parallel.of(len(wanted(desired, spec))))

    def _healthy_elsewhere(self, node: str, replica: str) -> bool:
        return any(
            machine.up and machine.name != node and (row := machine.rows.get(replica)) is not None and row.healthy
            for machine in self.machines()
        )

    # ------------------------------------------------------------------------------------------- assignments

    def accepted(self, node: str, before: Assignment | None, after: Assignment) -> None:
        """The agent of this node has taken an assignment over; `before` is what it held until then."""
        self.note("accepted", node, after.epoch, after.generation, after.digest[:12])
        self._no_storm(node)
        if before is not None and not _follows(before, after):
            self._broken("numbers only grow", f"{node}: {before.number} → {after.number}")
        if before is not None and after.number != before.number:
            if self._order.get(after.commit, -1) < self._order.get(before.commit, -1):
                self._broken("never back to an older commit", f"{node}: {before.commit[-4:]} → {after.commit[-4:]}")
            self._nothing_is_lost(node, before, after)
        self._assigned[node] = after

    def _nothing_is_lost(self, node: str, before: Assignment, after: Assignment) -> None:
        """What leaves a node is not wanted any more, or is told to run elsewhere."""
        desired = self.commits.get(after.commit)
        if desired is None:
            return
        stay = {order.replica for order in after.replicas} | {order.renamed_from for order in after.replicas}
        for order in before.replicas:
            spec = desired.instances.get(order.instance)
            if order.replica in stay or spec is None or order.replica not in wanted(desired, spec):
                continue
            elsewhere = any(
                order.replica in {held.replica for held in assignment.replicas}
                for name, assignment in self._assigned.items()
                if name != node
            )
            if not elsewhere and not self.drained(node):
                self._broken("a wanted replica keeps a home", f"{order.replica} leaves {node} and is nowhere else")

    def _no_storm(self, node: str) -> None:
        now = self.clock.now()
        recent = [at for at in self._sends[node] if now - at < 10.0] + [now]
        self._sends[node] = recent
        if len(recent) > 60:
            self._broken("no storm of orders", f"{node}: {len(recent)} assignments within 10 s")

    def _held(self, node: str) -> tuple[ReplicaOrder, ...]:
        assignment = self._assigned.get(node)
        return () if assignment is None else assignment.replicas

    # ------------------------------------------------------------------------------------------- the end

    def at_rest(self, desired: DesiredState) -> None:
        """All faults are over and the controllers say that everything is done: it must be so."""
        live: dict[str, list[tuple[str, HostRow]]] = defaultdict(list)
        for machine in self.machines():
            for row in machine.rows.values() if machine.up else ():
                if row.state in LIVE:
                    live[row.replica].append((machine.name, row))
        names = {replica for spec in desired.instances.values() for replica in wanted(desired, spec)}
        for replica in sorted(names | live.keys()):
            found = live.get(replica, [])
            spec = desired.instances.get(found[0][1].order.instance) if found else None
            if replica not in names:
                self._broken("what runs is what is wanted", f"{replica} still runs on {found[0][0]}")
            elif len(found) != 1:
                self._broken(
                    "what runs is what is wanted", f"{replica} runs on {[node for node, _ in found] or 'no node'}"
                )
            elif spec is None or found[0][1].spec_hash != spec.spec_hash or not found[0][1].healthy:
                self._broken("what runs is what is wanted", f"{replica} on {found[0][0]} is not as wanted")

    def broken(self, invariant: str, detail: str) -> None:
        """Something that only the history itself can see did not hold."""
        self._broken(invariant, detail)

    def _broken(self, invariant: str, detail: str) -> None:
        self.violations.append(Violation(invariant, self.clock.now(), detail))


def _follows(before: Assignment, after: Assignment) -> bool:
    """A later number, or the same assignment once more."""
    return after.number > before.number or (after.number == before.number and after.digest == before.digest)


def wanted(desired: DesiredState, spec: InstanceSpec) -> set[str]:
    """The names of the replicas that should run."""
    if spec.per_node is None:
        return {f"{spec.name}.{n}" for n in range(spec.replicas or 0)}
    return {
        f"{spec.name}.{node.name}.{n}"
        for node in desired.cluster.nodes.values()
        if matches(spec.placement.where, dict(node.labels), node.name)
        for n in range(spec.per_node)
    }
