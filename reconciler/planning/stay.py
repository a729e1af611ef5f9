"""Whether a replica may stay where it runs."""

from __future__ import annotations

from collections import Counter

from agent.wire import Resources
from reconciler.model.desired import InstanceSpec
from reconciler.model.plan import Cause
from reconciler.planning.capacity import lacks
from reconciler.planning.cases import World
from reconciler.planning.fleet import Sighting
from reconciler.planning.place import leave_fault


def must_leave(world: World, spec: InstanceSpec, home: Sighting, own: Counter[str]) -> str:
    """Why a replica cannot stay where it is, beside those of its instance that do; empty if it can.

    Load and cordons evict nothing.
    """
    site = world.fleet.sites[home.node]
    return (
        leave_fault(site, spec.placement.where)
        or barred(home)
        or crowded(spec, own[home.node])
        or outgrown(world, spec, home)
    )


def barred(home: Sighting) -> str:
    """That the node may not have the lease of the replica for as long as its last holder may be alive; empty if it may."""
    return str(home.row.lease) if home.row is not None and home.row.lease is not None and eligible(home) else ""


def eligible(home: Sighting) -> tuple[str, ...]:
    """The only nodes on which the replica can get its lease; none when any may."""
    return home.row.lease.eligible if home.row is not None and home.row.lease is not None else ()


def crowded(spec: InstanceSpec, others: int) -> str:
    """Why a node that holds so many others of this instance cannot keep one more; empty if it can."""
    most = spec.placement.max_per_node
    return f"holds {most} of it already" if most is not None and spec.per_node is None and others >= most else ""


def outgrown(world: World, spec: InstanceSpec, home: Sighting) -> str:
    """A new spec that asks for more than its node has left cannot stay; what runs already may."""
    entry = home.entry
    if entry is None or spec.per_node is not None or entry.spec_hash == spec.spec_hash:
        return ""
    if entry.spec.resources == spec.spec.resources:
        return ""
    new, old = spec.spec.resources, entry.spec.resources
    more = Resources(
        cpu=max(0.0, (new.cpu or 0.0) - (old.cpu or 0.0)), memory=max(0, (new.memory or 0) - (old.memory or 0))
    )
    if not more.cpu and not more.memory:
        return ""
    room = world.rooms.reader(world.fleet)(home.node)
    lacking = lacks(room, world.fleet.sites[home.node].capacity, more, slots=0)
    if lacking:
        return f"has too little {lacking} left"
    world.rooms.grow(world.fleet, home.node, more)
    return ""


def why_move(world: World, home: Sighting, must_leave: str) -> tuple[Cause, str]:
    """What sends a replica away from its node."""
    node = home.node
    if not world.fleet.sites[node].listed:
        return Cause.NODE_REMOVED, f"node {node} removed from Git"
    if world.fleet.sites[node].draining:
        return Cause.DRAIN, f"node {node} is drained"
    if must_leave == barred(home):
        return Cause.LEASE, f"{node} {must_leave}"
    return Cause.COMMIT, f"{node} {must_leave.replace('fail where', 'fails where')}"
