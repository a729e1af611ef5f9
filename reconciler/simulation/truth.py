"""What really is so in a simulated world, as somebody knows who sees everything and asks nobody."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from agent.clock import Clock, Monotonic
from agent.keeper.protocol import HostRow
from agent.wire import Assignment, ReplicaOrder
from reconciler.model.desired import DesiredState, InstanceSpec
from reconciler.model.where import matches
from reconciler.simulation.machine import LIVE, Machine
from reconciler.simulation.servers import Servers

LAG = 21.0  # seconds in which a leader may still act on what it heard before


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken: which one, when, and what was seen."""

    promise: str
    at: float
    detail: str

    def __str__(self) -> str:
        return f"{self.at:9.3f}  {self.promise}: {self.detail}"


class Surroundings(Protocol):
    """What the observer may look at in the world."""

    @property
    def machines(self) -> Mapping[str, Machine]: ...

    def lost_lately(self, node: str, lag: float) -> bool:
        """Whether both witnesses missed a node for long enough, at some moment of the last `lag` seconds."""
        ...

    def certain(self, controller: str) -> bool:
        """Whether Consul has answered this controller so recently that it may still lead."""
        ...

    @property
    def servers(self) -> Servers:
        """Consul's: what they said lately proves nothing if they were in trouble then."""
        ...

    def lock_of(self, replica: str) -> str:
        """The session that holds the lock of a replica."""
        ...

    def eligible(self, replica: str, node: str) -> frozenset[str]:
        """The nodes that may have the lock after this one, as it wrote them down; none if another wrote last."""
        ...

    def barred(self, replica: str, node: str) -> bool:
        """Whether the last holder of a lock wrote down who may have it next, and this node is not among them."""
        ...

    def git_in_trouble(self) -> bool:
        """Whether a look at Git brings an error or a rejected commit."""
        ...


@dataclass(slots=True)
class Truth:
    """Commits, what each node has accepted, what was ever well, and which promises were broken."""

    clock: Clock
    world: Surroundings
    commits: dict[str, DesiredState] = field(default_factory=dict)  # good ones, by id
    order: dict[str, int] = field(default_factory=dict)  # of commits
    assigned: dict[str, Assignment] = field(default_factory=dict)  # by node, what it accepted last
    ran_well: set[tuple[str, str]] = field(default_factory=set)  # (replica, spec hash) that were healthy once
    known: set[str] = field(default_factory=set)  # replicas that were healthy once and are wanted since
    well_until: dict[tuple[str, str], Monotonic] = field(
        default_factory=dict
    )  # (node, replica) → when it stopped to be
    fenced: dict[tuple[str, str], Monotonic] = field(
        default_factory=dict
    )  # (node, replica) → when its lease was lost last
    renames: dict[str, str] = field(default_factory=dict)  # names that instances had before → what they are called now
    asked: set[str] = field(default_factory=set)  # nodes that a person had drained
    forgot: dict[str, int] = field(default_factory=dict)  # nodes that lost their ledger → assignments accepted since
    confirmed: set[str] = field(default_factory=set)  # commits of which a person let more go than the limit
    violations: list[Violation] = field(default_factory=list)
    _trace: hashlib._Hash = field(default_factory=hashlib.sha256)

    def pushed(self, desired: DesiredState) -> None:
        """A good commit arrived in Git."""
        self.order[desired.commit] = len(self.order)
        self.commits[desired.commit] = desired
        left = {
            old: new for old, new in self.renames.items() if new not in desired.instances
        }  # it may run on, not yet pruned
        said = {spec.moved_from: spec.name for spec in desired.instances.values() if spec.moved_from}
        self.renames = {old: new for old, new in {**left, **said}.items() if old not in desired.instances}
        self.note("commit", desired.commit)

    def note(self, *what: object) -> None:
        """Belongs to the trace, by which two runs of one seed are compared."""
        self._trace.update(f"{self.clock.now():.6f} {' '.join(map(str, what))}\n".encode())

    def broken(self, promise: str, detail: str) -> None:
        """A promise does not hold."""
        self.violations.append(Violation(promise, self.clock.now(), detail))

    @property
    def digest(self) -> str:
        """16 hex digits over everything that happened."""
        return self._trace.hexdigest()[:16]

    def names(self, replica: str) -> Iterator[str]:
        """The replica's own name, and those under which it ran before or goes on: all of them are one and the same."""
        instance, dot, number = replica.partition(".")
        yield replica
        for before, after in self.renames.items():
            if instance in (before, after):
                yield (before if instance == after else after) + dot + number

    def held(self, node: str) -> tuple[ReplicaOrder, ...]:
        """What the node has accepted to run."""
        assignment = self.assigned.get(node)
        return () if assignment is None else assignment.replicas

    def row(self, node: str, replica: str) -> HostRow | None:
        """The host of this replica there, if its machine is up."""
        machine = self.world.machines[node]
        return machine.rows.get(replica) if machine.up else None

    def copies(self, replica: str) -> Iterator[tuple[str, HostRow]]:
        """Every live host of a replica."""
        for name in self.world.machines:
            row = self.row(name, replica)
            if row is not None and row.state in LIVE:
                yield name, row

    def well(self, replica: str, but: str = "") -> bool:
        """Whether a healthy host of this replica runs on any other node than `but`."""
        return any(row.healthy and name != but for name, row in self.copies(replica))

    def needless(self, replica: str, spec: InstanceSpec) -> bool:
        """Whether it belongs to a node that needs none: a drained one, or a lost one."""
        if spec.per_node is None:
            return False
        home = replica.split(".")[1]
        return home in self.asked or not self.world.machines[home].up or self.world.lost_lately(home, LAG)


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


def renamed(order: ReplicaOrder, desired: DesiredState) -> InstanceSpec | None:
    """The instance in Git under whose name this leased replica goes on; None when there is none."""
    spec = next((each for each in desired.instances.values() if each.moved_from == order.instance), None)
    if spec is None or "none" in (spec.policy.lease, order.policy.lease):
        return None
    return spec if spec.name + order.replica.removeprefix(order.instance) in wanted(desired, spec) else None


def instance_of(order: ReplicaOrder, desired: DesiredState) -> InstanceSpec | None:
    """The instance in Git that wants this replica; None when nothing does."""
    spec = desired.instances.get(order.instance)
    return spec if spec is not None and order.replica in wanted(desired, spec) else None
