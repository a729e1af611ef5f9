"""A replica that no answering node has: where it starts, and what it waits for."""

from __future__ import annotations

from agent.wire import ReplicaState
from reconciler.model.desired import InstanceSpec
from reconciler.model.observed import NodeView, Presence, ReplicaView
from reconciler.model.plan import Cause, HoldReason, Verdict
from reconciler.planning.capacity import lacks
from reconciler.planning.cases import Case, Step, World, make_change, make_order
from reconciler.planning.fleet import Sighting
from reconciler.planning.homes import is_leased, names_of, old_name, wanted_replicas
from reconciler.planning.place import Seats, port_taken
from reconciler.planning.silence import held_by_forgotten, held_by_unheard, hold_forgotten, hold_silent

_ORDER = {"runs there already": 0, "stopped there": 1, "ran there": 2}


def start(
    world: World, spec: InstanceSpec, case: Case, seats: Seats, name: str, node: str, lost: Sighting | None
) -> None:
    """A replica that no answering node has: find it a place and start it there."""
    case.missing += 1
    fault = ""
    there = _where_it_ran(world, name)
    if not node and there is not None and seats.take_at(there.name):
        node = there.name
    elif not node:
        node = seats.take()
        fault = "" if node else seats.why_none()
    elif not world.fleet.sites[node].silent and world.presence(node) is not Presence.ABSENT:
        fault = _no_room(world, spec, node)
    cause, reason = _why_start(world, spec, name, node, lost)
    row = there.replicas.get(name) if there is not None and there.name == node else None
    if there is not None and there.name == node:
        cause, reason = Cause.DRIFT, f"{_how_it_is(row)}; {node} does not remember who ordered it"
    change = make_change(
        world, Verdict.START, cause, replica=name, instance=spec.name, node=node, spec=spec, before=lost, reason=reason
    )
    step = Step(change, adopts=row is not None, dead=row is not None and not row.healthy)
    case.steps.append(step)
    if _held_by_mass_failure(world, spec, step, lost) or _held_by_rename(world, step):
        return
    if fault:
        step.held(HoldReason.NO_PLACE, fault)
    elif spec.per_node is not None and world.fleet.sites[node].silent:
        hold_silent(world, step, (node,))
    elif spec.per_node is not None and world.presence(node) is Presence.ABSENT:  # wanted there as it may run it
        hold_forgotten(step, (node,))
    elif spec.per_node is not None or not (
        held_by_unheard(world, spec, step) or (lost is None and held_by_forgotten(world, step))
    ):
        replica, instance = first_name(world, spec, name, lost)
        step.puts = make_order(world, spec, replica, node, instance=instance)


def first_name(world: World, spec: InstanceSpec, name: str, lost: Sighting | None) -> tuple[str, str]:
    """The replica and instance to start: under the old name while a process elsewhere may have that lease, which says when it is
    dead. It is renamed once the lease is held."""
    if lost is not None and lost.replica != name and lost.entry is not None and is_leased(spec, lost.entry):
        return lost.replica, lost.instance
    old = old_name(world, spec, name)
    if lost is None and old and spec.policy.lease != "none" and world.shown_on_lost(old):
        return old, str(spec.moved_from)
    return name, spec.name


def _held_by_rename(world: World, step: Step) -> bool:
    """What runs under this name is another instance's by now, and is renamed first: an agent ends what it finds under the name."""
    renaming = world.fleet.renaming.get(step.change.replica, {}).values()
    there = {s.node: s.replica for s in renaming if world.presence(s.node) is not Presence.LOST}
    for node in sorted(there):
        detail = f"{step.change.replica} on {node} is renamed to {there[node]} first"
        step.held(HoldReason.IN_FLIGHT, detail, tuple(sorted(there)))
    return bool(there)


def _held_by_mass_failure(world: World, spec: InstanceSpec, step: Step, lost: Sighting | None) -> bool:
    found, names = world.mass_failure, names_of(world, spec, step.change.replica)
    if found is None or spec.per_node is not None or (lost is None and not world.may_have_run(*names)):
        return False
    detail, until = found.why_wait(lost.node if lost is not None else world.shown_on_lost(*names), world.now)
    if detail:
        step.held(HoldReason.MASS_FAILURE_HOLD, detail, found.nodes, until)
    return bool(detail)


def _where_it_ran(world: World, name: str) -> NodeView | None:
    """The node that has forgotten its orders and on which a replica runs, or was stopped, or of which nothing is left there."""
    found = [view for view in world.forgetful if name in view.replicas or name in view.ran]
    return min(found, key=lambda view: _ORDER[_how_it_is(view.replicas.get(name))], default=None)


def _how_it_is(row: ReplicaView | None) -> str:
    if row is None:
        return "ran there"
    return "stopped there" if row.state is ReplicaState.STOPPED else "runs there already"


def _no_room(world: World, spec: InstanceSpec, node: str) -> str:
    """Why the only node that may run a replica cannot; empty if it can, and then the room is taken."""
    room = world.rooms.reader(world.fleet)(node)
    lacking = lacks(room, world.fleet.sites[node].capacity, spec.spec.resources)
    if lacking:
        return f"{node} is without {lacking} left"
    taken = port_taken(room, spec.policy)
    if taken:
        return f"{node}: other replicas {taken}"
    world.rooms.add(world.fleet, node, spec.spec, spec.policy)
    return ""


def _why_start(world: World, spec: InstanceSpec, name: str, node: str, lost: Sighting | None) -> tuple[Cause, str]:
    if lost is not None and world.presence(lost.node) is not Presence.LOST:
        return Cause.LEASE, f"fenced on {lost.node}"
    if lost is not None:
        gone = world.fleet.sites[lost.node].listed
        return (
            (Cause.NODE_LOST, f"node {lost.node} lost") if gone else (Cause.NODE_REMOVED, f"node {lost.node} removed")
        )
    if spec.per_node is None and (before := world.shown_on_lost(*names_of(world, spec, name))):
        return Cause.NODE_LOST, f"node {before} lost"
    held = [s for sights in world.fleet.of(spec.name).values() for s in sights if s.entry is not None]
    if spec.per_node is not None and any(s.entry and s.entry.spec_hash == spec.spec_hash for s in held):
        assignment = world.view(node).assignment
        if assignment is None or not assignment.replicas:
            return Cause.NODE_JOINED, f"node {node} joined"
    names = {s.replica for s in held}
    if names and not any(s.entry and s.entry.commit == world.desired.commit for s in held):
        total = len(wanted_replicas(world, spec))
        if len(names) < total:
            return Cause.COMMIT, f"scaled {len(names)} → {total}"
    return Cause.COMMIT, "" if names else "new"
