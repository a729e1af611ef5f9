"""Replicas that nothing in Git asks for: too many, in the wrong place, or of an instance that is gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from reconciler.model.desired import InstanceSpec
from reconciler.model.observed import Presence
from reconciler.model.plan import Cause, Change, HoldReason, Verdict
from reconciler.planning.cases import Case, Step, World, change_of_spec, make_change
from reconciler.planning.explain import listed
from reconciler.planning.fleet import Sighting
from reconciler.planning.place import label_fault, leave_fault
from reconciler.planning.stay import crowded, outgrown, why_move


def leftovers_of_replica(
    world: World, spec: InstanceSpec, case: Case, name: str, home: Sighting | None, own: Counter[str]
) -> None:
    """Every other copy of a wanted replica: the source of a move, or one that came back after it was replaced."""
    for other in world.fleet.of(spec.name).get(name, ()):
        if other is home or world.presence(other.node) is Presence.LOST:
            continue
        if home is None or world.forsaken(home):
            if other.entry is None and not _adopted(case, other):
                _stopping(world, case, other)
            continue
        _second_copy(world, spec, case, home, other, own)


def _adopted(case: Case, sighting: Sighting) -> bool:
    """Whether what runs there is to be ordered there (anew)."""
    return any(
        step.adopts and (step.change.replica, step.change.node) == (sighting.replica, sighting.node)
        for step in case.steps
    )


def _second_copy(
    world: World, spec: InstanceSpec, case: Case, home: Sighting, other: Sighting, own: Counter[str]
) -> None:
    site = world.fleet.sites[other.node]
    leaves = (
        leave_fault(site, spec.placement.where)
        or crowded(spec, own[other.node])
        or (outgrown(world, spec, other) if other.entry is not None else "")
    )
    goes = why_move(world, other, leaves) if leaves else None
    if goes is None and world.rebalanced(spec, home, other):
        goes = Cause.NODE_JOINED, f"{home.node} has more room"
    if goes is not None:
        cause, why = goes
        reason = ", ".join(part for part in (why, change_of_spec(other, spec)) if part)
        change = make_change(
            world,
            Verdict.MOVE,
            cause,
            replica=other.replica,
            instance=spec.name,
            node=home.node,
            spec=spec,
            before=other,
            from_node=other.node,
            reason=reason,
        )
    else:
        change = make_change(
            world,
            Verdict.STOP,
            Cause.NODE_LOST,
            replica=other.replica,
            instance=spec.name,
            node=other.node,
            before=other,
            reason=f"superseded by the one on {home.node}",
        )
    step = _dropping(world, case, change_step(change, other), other)
    note_deadline(world, case, other.node)
    _keep_until_taken_over(world, spec, step, home, other)


def _keep_until_taken_over(world: World, spec: InstanceSpec, step: Step, home: Sighting, other: Sighting) -> None:
    """Hold the end of the copy until the one that replaces it works, or at least waits for the lease that goes with this end.

    One that runs without a lease does not outlast the commit that asks for one: no lock would keep the two apart.
    """
    if step.hold is not None or world.fleet.sites[other.node].overdue(world.now):
        return
    silent, where = world.fleet.sites[home.node].silent, (home.replica, home.node)
    leased = other.entry is not None and other.entry.policy.lease != "none"
    if leased and not world.view(home.node).confirmed:
        step.held(HoldReason.TARGET_STARTING, f"{home.node} has not said yet that it takes {home.replica} over", where)
    elif other.promising and silent:
        step.held(HoldReason.TARGET_STARTING, f"{home.replica} runs on {home.node}, which does not answer", where)
    elif other.promising and not home.healthy and not leased and spec.policy.lease == "none":
        error = f": {home.row.last_error}" if home.row is not None and home.row.last_error else ""
        step.held(HoldReason.TARGET_STARTING, f"{home.replica} is not healthy on {home.node} yet{error}", where)
    else:
        step.hands_over = other.healthy and not home.healthy


def gate(case: Case) -> None:
    """A copy is not stopped where the replica moves to now."""
    moves = [step for step in case.steps if step.change.verdict is Verdict.MOVE and step.puts is not None]
    coming = {(step.change.replica, step.change.node): step.change for step in moves if step.hold is None}
    for step in case.steps if coming else ():
        move = coming.get((step.change.replica, step.change.node))
        if move is not None and step.change.verdict is Verdict.STOP:
            step.held(HoldReason.TARGET_STARTING, f"{move.replica} moves there from {move.from_node}", (move.replica,))


def leftovers(world: World, spec: InstanceSpec, case: Case, wanted: Iterable[str]) -> None:
    """Replicas under names that are not wanted, highest number first."""
    names = set(wanted)
    for name, sightings in world.fleet.of(spec.name).items():
        if name in names:
            continue
        for sighting in sightings:
            site = world.fleet.sites[sighting.node]
            if site.presence is Presence.LOST:
                continue
            cause, reason = _why_unwanted(world, spec, sighting, len(names))
            change = make_change(
                world,
                Verdict.STOP,
                cause,
                replica=name,
                instance=spec.name,
                node=sighting.node,
                before=sighting,
                reason=reason,
            )
            step = _dropping(world, case, change_step(change, sighting), sighting)
            _last_to_leave(world, spec, case, step, sighting)


def _last_to_leave(world: World, spec: InstanceSpec, case: Case, step: Step, sighting: Sighting) -> None:
    """What belongs to every node goes from a drained one only after what others may need it for."""
    site = world.fleet.sites[sighting.node]
    if spec.per_node is None or not site.draining or site.overdue(world.now):
        return
    note_deadline(world, case, site.name)
    assignment = world.view(site.name).assignment
    wanted = world.desired.instances
    moving = [
        entry.replica
        for entry in (() if assignment is None else assignment.replicas)
        if entry.instance in wanted and wanted[entry.instance].per_node is None
    ]
    if moving:
        step.held(HoldReason.EARLIER_WAVE, f"{listed(moving)} leaves {site.name} first", tuple(moving[:10]))


def note_deadline(world: World, case: Case, node: str) -> None:
    """Time alone changes what happens to replicas on a node that is drained."""
    site = world.fleet.sites[node]
    if site.draining and site.deadline is not None and site.deadline > world.now:
        case.lapses.append(site.deadline)


def _why_unwanted(world: World, spec: InstanceSpec, sighting: Sighting, wanted: int) -> tuple[Cause, str]:
    site = world.fleet.sites[sighting.node]
    if spec.per_node is not None and not site.listed:
        return Cause.NODE_REMOVED, f"node {site.name} removed from Git"
    if spec.per_node is not None and site.draining:
        return Cause.DRAIN, f"node {site.name} is drained"
    fault = label_fault(site, spec.placement.where)
    if spec.per_node is not None and fault:
        return Cause.COMMIT, f"{site.name} {fault.replace('fail where', 'fails where')}"
    held = sum(1 for sightings in world.fleet.of(spec.name).values() if any(s.entry for s in sightings))
    return Cause.COMMIT, f"scaled {held} → {wanted}" if held > wanted else "not wanted any more"


def gone(world: World, instance: str, claimed: set[tuple[str, str]]) -> Case:
    """An instance that is not in Git any more: all of it stops, except what lives on under another name."""
    case = Case(instance)
    for name, sightings in world.fleet.of(instance).items():
        for sighting in sightings:
            if (sighting.node, name) in claimed or world.presence(sighting.node) is Presence.LOST:
                continue
            change = make_change(
                world,
                Verdict.STOP,
                Cause.COMMIT,
                replica=name,
                instance=instance,
                node=sighting.node,
                before=sighting,
                reason="not in the commit rolled back to" if world.record.rolled_back else "no longer in Git",
            )
            step = _dropping(world, case, change_step(change, sighting), sighting)
            step.prunes = True
    return case


def change_step(change: Change, sighting: Sighting) -> Step:
    """A step that takes a sighting's entry away."""
    if sighting.entry is None:
        return Step(change, in_flight=True)
    return Step(change, drops=((sighting.node, sighting.replica),))


def _dropping(world: World, case: Case, step: Step, sighting: Sighting) -> Step:
    case.steps.append(step)
    if sighting.entry is None:
        step.held(HoldReason.IN_FLIGHT, f"{sighting.node} is stopping it", (sighting.node,))
    elif world.fleet.sites[sighting.node].silent:
        step.drops = ()
        step.held(HoldReason.NODE_SILENT, f"{listed([sighting.node])} does not answer", (sighting.node,))
    return step


def _stopping(world: World, case: Case, sighting: Sighting) -> None:
    change = make_change(
        world,
        Verdict.STOP,
        Cause.COMMIT,
        replica=sighting.replica,
        instance=sighting.instance,
        node=sighting.node,
        before=sighting,
        reason="told to stop",
    )
    _dropping(world, case, change_step(change, sighting), sighting)
