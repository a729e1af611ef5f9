"""Where each wanted replica of an instance is, under its own name or the one it had before."""

from __future__ import annotations

from agent.wire import ReplicaOrder, ReplicaState
from reconciler.model.desired import InstanceSpec
from reconciler.model.observed import Presence
from reconciler.planning.cases import World
from reconciler.planning.fleet import Sighting
from reconciler.planning.outlook import Homes
from reconciler.planning.place import leave_fault


def wanted_replicas(world: World, spec: InstanceSpec) -> dict[str, str]:
    """Replica names in order, each with the only node it may run on, or with an empty name when any will do."""
    if spec.per_node is None:
        return {f"{spec.name}.{n}": "" for n in range(spec.replicas or 0)}
    held = world.fleet.of(spec.name)
    wanted, forgotten = {}, frozenset(world.forgotten)
    for site in world.fleet.sites.values():
        unknown = site.presence is Presence.ABSENT and site.name not in forgotten  # it may never have been there
        if site.presence is Presence.LOST or unknown or leave_fault(site, spec.placement.where):
            continue
        for n in range(spec.per_node):
            name = f"{spec.name}.{site.name}.{n}"
            if not site.cordoned or name in held:
                wanted[name] = site.name
    return wanted


def homes_of(world: World, spec: InstanceSpec, wanted: dict[str, str]) -> Homes:
    """Where each wanted replica is: under its own name, or under the one it had before."""
    own = world.fleet.of(spec.name)
    homes: Homes = {}
    for name in wanted:
        home = _home(world, spec, own.get(name, ()))
        if home is None and (old := old_name(world, spec, name)):
            home = _home(world, spec, world.fleet.of(str(spec.moved_from)).get(old, ()))
        homes[name] = home
    return homes


def old_name(world: World, spec: InstanceSpec, name: str) -> str:
    """The name that a replica had before its instance was renamed; empty if it was not."""
    old = spec.moved_from
    return old + name[len(spec.name) :] if old and old not in world.desired.instances else ""


def names_of(world: World, spec: InstanceSpec, name: str) -> tuple[str, ...]:
    """All names under which a replica may run."""
    old = old_name(world, spec, name)
    return (name, old) if old else (name,)


def _home(world: World, spec: InstanceSpec, sightings: tuple[Sighting, ...]) -> Sighting | None:
    """The one that counts: not on a lost node if there is another, then who holds the lease that is asked for and may stay where
    it is, then the one ordered last. Of two that say they hold it, it is the one with the higher token, or that answers: the
    other's word is old."""
    ordered = [s for s in sightings if s.entry is not None]
    if len(ordered) < 2:
        return ordered[0] if ordered else None
    keeps = {s.node: _number(s) for s in ordered if _keeps_lease(world, spec, s)}
    latest = max((number for number in keeps.values() if number is not None), default=None)

    def rank(sighting: Sighting) -> tuple[bool, bool, bool, tuple[int, int]]:
        node, number = sighting.node, keeps.get(sighting.node)
        sure = number == latest if number is not None else not world.fleet.sites[node].silent
        order = sighting.entry.ordered if sighting.entry is not None else (-1, -1)
        return (not world.forsaken(sighting), node in keeps, node in keeps and sure, order)

    return max(ordered, key=rank)


def _number(sighting: Sighting) -> tuple[int, int] | None:
    """Of the lease that a replica is said to hold."""
    return sighting.row.lease.number if sighting.row is not None and sighting.row.lease is not None else None


def _keeps_lease(world: World, spec: InstanceSpec, sighting: Sighting) -> bool:
    if spec.policy.lease == "none" or not holds_lease(sighting):
        return False
    return not leave_fault(world.fleet.sites[sighting.node], spec.placement.where)


def holds_lease(sighting: Sighting) -> bool:
    row = sighting.row
    return row is not None and row.lease is not None and row.lease.state == "held"


def runs_unleased(sighting: Sighting) -> bool:
    """Whether a process is there from before it needed a lease: no lock keeps another one from starting beside it."""
    row = sighting.row
    if row is None or row.state not in (ReplicaState.STARTING, ReplicaState.STARTED, ReplicaState.STOPPING):
        return False
    return row.lease is None or row.lease.state == "waiting"


def is_leased(spec: InstanceSpec, entry: ReplicaOrder) -> bool:
    return "none" not in (spec.policy.lease, entry.policy.lease)
