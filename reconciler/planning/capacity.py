"""What a node declares to offer, and what the replicas assigned to it declare to use. Nothing here is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.wire import Assignment, Capacity, ReplicaPolicy, ReplicaSpec, Resources
from reconciler.planning.evenness import evenness
from reconciler.planning.fleet import Fleet

NOMINAL_SLOTS = 20  # of a node that declares nothing, so that its load can be compared with one that does
_CLOSE = 1e-9  # three times a third of a core is a whole core


@dataclass(slots=True)
class Room:
    """What is taken on one node."""

    slots: int = 0
    cpu: float = 0.0
    memory: int = 0
    ports: Counter[int] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)  # replicas by package name

    def add(self, spec: ReplicaSpec, policy: ReplicaPolicy) -> None:
        self.slots += 1
        self.cpu += spec.resources.cpu or 0.0
        self.memory += spec.resources.memory or 0
        self.types[spec.package.name] += 1
        if policy.ports:
            self.ports.update(policy.ports)

    def take_away(self, spec: ReplicaSpec) -> None:
        """One replica less, as far as scores look at it: ports stay."""
        self.slots -= 1
        self.cpu -= spec.resources.cpu or 0.0
        self.memory -= spec.resources.memory or 0
        self.types[spec.package.name] -= 1

    def copy(self) -> Room:
        return Room(self.slots, self.cpu, self.memory, Counter(self.ports), Counter(self.types))

    def share(self, capacity: Capacity, more: int = 0, of: Resources | None = None) -> float:
        """The fullest declared dimension, 1 being full; with so many replicas of that size more."""
        cpu, memory = (0.0, 0) if of is None else (more * (of.cpu or 0.0), more * (of.memory or 0))
        shares = [(self.slots + more) / (capacity.slots or NOMINAL_SLOTS)]
        if capacity.cpu:
            shares.append((self.cpu + cpu) / capacity.cpu)
        if capacity.memory:
            shares.append((self.memory + memory) / capacity.memory)
        return round(max(shares), 6)

    def evenness_with(self, package: str) -> float:
        """The evenness of package types if one more replica of this package came."""
        return round(evenness((self.types + Counter([package])).values()), 6)


def lacks(room: Room, capacity: Capacity, more: Resources, slots: int = 1) -> str:
    """The first declared dimension in which this much more does not fit; empty if it does."""
    if capacity.slots is not None and room.slots + slots > capacity.slots:
        return "slots"
    if capacity.cpu is not None and room.cpu + (more.cpu or 0.0) > capacity.cpu + _CLOSE:
        return "cpu"
    if capacity.memory is not None and room.memory + (more.memory or 0) > capacity.memory:
        return "memory"
    return ""


@dataclass(slots=True)
class Rooms:
    """The rooms of all nodes, worked out when first asked for, and what this plan adds to them.

    There are two views. What fits is judged by the rooms as they are, with everything that still has to leave; what is best is
    judged by the rooms as they will be (`outlook.py` says how).
    """

    known: dict[str, tuple[Assignment | None, Room]] = field(default_factory=dict)  # kept between plans
    changed: list[str] = field(default_factory=list)  # nodes whose score may be another one, in that order
    _are: dict[str, Room] = field(default_factory=dict)
    _will_be: dict[str, Room] = field(default_factory=dict)

    def start(self) -> None:
        """Forget what an earlier plan added."""
        self._are, self._will_be, self.changed = {}, {}, []

    def reader(self, fleet: Fleet) -> Callable[[str], Room]:
        """The rooms as they are."""

        def at(node: str) -> Room:
            return self._are.get(node) or self._base(node, fleet)

        return at

    def outlook(self, fleet: Fleet) -> Callable[[str], Room]:
        """The rooms as they will be."""

        def at(node: str) -> Room:
            return self._will_be.get(node) or self._base(node, fleet)

        return at

    def add(self, fleet: Fleet, node: str, spec: ReplicaSpec, policy: ReplicaPolicy) -> None:
        """One more replica comes."""
        self._own(self._are, fleet, node).add(spec, policy)
        self.count(fleet, node, spec, policy)

    def grow(self, fleet: Fleet, node: str, more: Resources) -> None:
        """A replica that is there already takes more."""
        room = self._own(self._are, fleet, node)
        room.cpu += more.cpu or 0.0
        room.memory += more.memory or 0

    def count(self, fleet: Fleet, node: str, spec: ReplicaSpec, policy: ReplicaPolicy) -> None:
        """One more replica belongs to the outlook."""
        self._own(self._will_be, fleet, node).add(spec, policy)
        self.changed.append(node)

    def discount(self, fleet: Fleet, node: str, spec: ReplicaSpec) -> None:
        """One replica that is there does not belong to the outlook, or not yet."""
        self._own(self._will_be, fleet, node).take_away(spec)
        self.changed.append(node)

    def _own(self, layer: dict[str, Room], fleet: Fleet, node: str) -> Room:
        """The room of a node as this plan fills it, about to change."""
        if node not in layer:
            layer[node] = self._base(node, fleet).copy()
        return layer[node]

    def _base(self, node: str, fleet: Fleet) -> Room:
        view = fleet.views.get(node)
        assignment = None if view is None else view.assignment
        cached = self.known.get(node)
        if cached is not None and cached[0] is assignment:
            return cached[1]
        room = Room()
        for entry in () if assignment is None else assignment.replicas:
            room.add(entry.spec, entry.policy)
        self.known[node] = (assignment, room)
        return room
