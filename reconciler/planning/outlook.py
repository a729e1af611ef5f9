"""What placement scores by: the fleet as it will be, filled in a fixed order.

Plans are carried out in pieces, and the next plan is made from what is there then. The rest of a plan must go where it would
have gone all the same, so a score may not depend on how far the pieces got:

- what will leave does not count, whether it has left yet or not;
- what stays counts as it is wanted, whether it was changed yet or not;
- what this situation (commit and open nodes) brought to its node counts when its turn comes, in the order of instances and
  replicas, whether it was sent yet or not.

What fits is another question and is asked of the fleet as it is: nothing is sent to a node that is still full.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from reconciler.model.desired import InstanceSpec
from reconciler.planning.capacity import Rooms
from reconciler.planning.fleet import Fleet, Sighting

Homes = dict[str, Sighting | None]


@dataclass(slots=True)
class Stay:
    """One instance before anything is placed: where its wanted replicas are, and which of them must leave."""

    spec: InstanceSpec
    wanted: dict[str, str]  # replica -> the only node it may run on, or empty
    homes: Homes
    leaving: dict[str, str] = field(default_factory=dict)  # replica -> why it cannot stay; empty if it can
    staying: set[str] = field(default_factory=set)  # also what would have to leave a node that does not answer
    own: Counter[str] = field(default_factory=Counter)  # how many stay, by node

    @property
    def claimed(self) -> set[tuple[str, str]]:
        """(node, replica) of another name that live on in this one."""
        homes = (home for home in self.homes.values() if home is not None)
        return {(home.node, home.replica) for home in homes if home.instance != self.spec.name}


@dataclass(slots=True)
class Outlook:
    """Works the rooms out when a score is first asked for: most plans place nothing."""

    fleet: Fleet
    rooms: Rooms
    situation: str
    prune: bool
    stays: Mapping[str, Stay] = field(default_factory=dict)  # of the instances that may not be quiet
    gone: frozenset[str] = frozenset()  # instances that are not in Git any more
    _turns: list[str] | None = None  # instances whose replicas of this situation still have to be counted, last first
    _renamed: set[tuple[str, str]] = field(default_factory=set)  # (node, replica) that another instance takes over

    def fresh(self, home: Sighting) -> bool:
        """Whether this situation brought a replica to its node."""
        return home.placed == self.situation

    def turn_of(self, instance: str) -> None:
        """Everything that comes before this instance is in the rooms; its own replicas are counted by whoever places it."""
        if self._turns is None:
            self._turns = self._prepared()
        while self._turns and self._turns[-1] <= instance:
            name = self._turns.pop()
            if name != instance:
                self._count_all(name)

    def complete(self) -> None:
        """Everything is in the rooms as it will be once all is carried out; nothing more is placed by this plan."""
        if self._turns is None and not self.stays and not self.gone:
            return
        if self._turns is None:
            self._turns = self._prepared()
        while self._turns:
            self._count_all(self._turns.pop())

    def _prepared(self) -> list[str]:
        self._renamed = {claim for stay in self.stays.values() for claim in stay.claimed}
        for stay in self.stays.values():
            self._settle(stay)
        brought = self.fleet.by_situation.get(self.situation, {})
        quiet = brought.keys() - self.stays.keys() - self.gone
        for sighting in self._brought(quiet):
            self._discount(sighting)
        for name in self.gone if self.prune else ():
            for sightings in self.fleet.of(name).values():
                for sighting in sightings:
                    if (sighting.node, sighting.replica) not in self._renamed:
                        self._discount(sighting)
        return sorted(quiet | self.stays.keys(), reverse=True)

    def _brought(self, instances: Iterable[str]) -> Iterator[Sighting]:
        """Replicas that this situation brought to their nodes and that go on under their own name."""
        brought = self.fleet.by_situation.get(self.situation, {})
        for name in instances:
            for key, sighting in brought.get(name, {}).items():
                if key not in self._renamed:
                    yield sighting

    def _settle(self, stay: Stay) -> None:
        """What leaves or has its turn later goes out of the rooms; what stays is in them as it is wanted."""
        homes = {id(home): name for name, home in stay.homes.items() if home is not None and name in stay.staying}
        for sightings in self.fleet.of(stay.spec.name).values():
            for sighting in sightings:
                if id(sighting) not in homes:
                    self._discount(sighting)
        for home in stay.homes.values():
            if home is None or home.entry is None or id(home) not in homes:
                continue
            if self.fresh(home):
                self._discount(home)
            elif home.entry.spec_hash != stay.spec.spec_hash:
                self._discount(home)
                self._count(home.node, stay.spec)

    def _count_all(self, name: str) -> None:
        stay = self.stays.get(name)
        if stay is None:
            for sighting in self._brought((name,)):
                if sighting.entry is not None:
                    self.rooms.count(self.fleet, sighting.node, sighting.entry.spec, sighting.entry.policy)
            return
        for replica in stay.staying:
            home = stay.homes[replica]
            if home is not None and self.fresh(home):
                self._count(home.node, stay.spec)

    def _count(self, node: str, spec: InstanceSpec) -> None:
        self.rooms.count(self.fleet, node, spec.spec, spec.policy)

    def _discount(self, sighting: Sighting) -> None:
        if sighting.entry is not None:
            self.rooms.discount(self.fleet, sighting.node, sighting.entry.spec)
