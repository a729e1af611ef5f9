"""One instance: its wanted replicas paired with where they are, and what follows for each."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from agent.clock import Monotonic
from agent.wire import ReplicaOrder, ReplicaState
from reconciler.model.desired import InstanceSpec
from reconciler.model.observed import NodeView, Presence
from reconciler.model.plan import Cause, HoldReason, Verdict
from reconciler.planning.capacity import lacks
from reconciler.planning.cases import (
    Case,
    Standing,
    Step,
    World,
    change_of_spec,
    make_change,
    make_order,
    policy_of,
)
from reconciler.planning.compare import Pair, astray, compare
from reconciler.planning.explain import listed
from reconciler.planning.fleet import Sighting, Site
from reconciler.planning.leftovers import leftovers, leftovers_of_replica, note_deadline
from reconciler.planning.outlook import Homes, Stay
from reconciler.planning.place import Seats, leave_fault, port_taken
from reconciler.planning.stay import barred, eligible, must_leave, why_move


def stay_of(world: World, spec: InstanceSpec) -> Stay:
    """Where the replicas of one instance are, and which of them can stay there."""
    wanted = wanted_replicas(world, spec)
    stay = Stay(spec, wanted, _homes(world, spec, wanted))
    for name, home in stay.homes.items():
        if home is None or world.forsaken(home):
            continue
        fault = stay.leaving[name] = must_leave(world, spec, home, stay.own)
        if not fault or world.fleet.sites[home.node].silent:
            stay.staying.add(name)
            stay.own[home.node] += 1
    return stay


def examine(world: World, stay: Stay) -> Case:
    """Everything that should change for one instance, as if it were alone; holds that need the others come later."""
    spec, homes, own = stay.spec, stay.homes, stay.own
    case = Case(spec.name, spec)
    settled = (homes[name] for name in stay.staying)
    seen = Counter(home.node for home in settled if home is not None and not world.outlook.fresh(home))
    seats = Seats(spec, world.openings, world.outlook, own, seen)
    for name, node in stay.wanted.items():
        home = homes[name]
        if home is None:
            _start(world, spec, case, seats, name, node, None)
        elif world.forsaken(home):
            _start(world, spec, case, seats, name, node, home)
        else:
            if name in stay.staying:
                seats.pass_by(home)
            note_deadline(world, case, home.node)
            _keep(world, spec, case, seats, name, home, stay.leaving[name])
        leftovers_of_replica(world, spec, case, name, home, own)
    leftovers(world, spec, case, stay.wanted)
    return case


def wanted_replicas(world: World, spec: InstanceSpec) -> dict[str, str]:
    """Replica names in order, each with the only node it may run on, or with an empty name when any will do."""
    if spec.per_node is None:
        return {f"{spec.name}.{n}": "" for n in range(spec.replicas or 0)}
    held = world.fleet.of(spec.name)
    wanted = {}
    for site in world.fleet.sites.values():
        if site.presence in (Presence.LOST, Presence.ABSENT) or leave_fault(site, spec.placement.where):
            continue
        for n in range(spec.per_node):
            name = f"{spec.name}.{site.name}.{n}"
            if not site.cordoned or name in held:
                wanted[name] = site.name
    return wanted


def _homes(world: World, spec: InstanceSpec, wanted: dict[str, str]) -> Homes:
    """Where each wanted replica is: under its own name, or under the one it had before."""
    own = world.fleet.of(spec.name)
    homes: Homes = {}
    for name in wanted:
        home = _home(world, spec, own.get(name, ()))
        if home is None and (old := _old_name(world, spec, name)):
            home = _home(world, spec, world.fleet.of(str(spec.moved_from)).get(old, ()))
        homes[name] = home
    return homes


def _old_name(world: World, spec: InstanceSpec, name: str) -> str:
    """The name that a replica had before its instance was renamed; empty if it was not."""
    old = spec.moved_from
    return old + name[len(spec.name) :] if old and old not in world.desired.instances else ""


def _names(world: World, spec: InstanceSpec, name: str) -> tuple[str, ...]:
    """All names under which a replica may run."""
    old = _old_name(world, spec, name)
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
    if spec.policy.lease == "none" or not _holds_lease(sighting):
        return False
    return not leave_fault(world.fleet.sites[sighting.node], spec.placement.where)


def _start(
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
    elif not world.fleet.sites[node].silent:
        fault = _no_room(world, spec, node)
    cause, reason = _why_start(world, spec, name, node, lost)
    row = there.replicas[name] if there is not None and there.name == node else None
    if row is not None:
        was = "stopped there" if row.state is ReplicaState.STOPPED else "runs there already"
        cause, reason = Cause.DRIFT, f"{was}; {node} does not remember who ordered it"
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
        _hold_silent(world, step, (node,))
    elif spec.per_node is not None or not (
        _held_by_unheard(world, spec, step) or (lost is None and _held_by_forgotten(world, step))
    ):
        replica, instance = _first_name(world, spec, name, lost)
        step.puts = make_order(world, spec, replica, node, instance=instance)


def _first_name(world: World, spec: InstanceSpec, name: str, lost: Sighting | None) -> tuple[str, str]:
    """The replica and instance to start: under the old name while a process elsewhere may have that lease, which says when it is
    dead. It is renamed once the lease is held."""
    if lost is not None and lost.replica != name and lost.entry is not None and _is_leased(spec, lost.entry):
        return lost.replica, lost.instance
    old = _old_name(world, spec, name)
    if lost is None and old and spec.policy.lease != "none" and world.shown_on_lost(old):
        return old, str(spec.moved_from)
    return name, spec.name


def _held_by_unheard(world: World, spec: InstanceSpec, step: Step) -> bool:
    """Also what is lost or fenced where this leader heard of it may have been told to run on a node that did not answer yet."""
    others = world.may_run(*_names(world, spec, step.change.replica))
    if others:
        step.held(HoldReason.NODE_SILENT, f"{listed(others)} may run it already and did not answer yet", others)
    return bool(others)


def _held_by_forgotten(world: World, step: Step) -> bool:
    if world.forgotten:
        detail = f"{listed(world.forgotten)} may run it and did not come back since Consul lost its data"
        step.held(HoldReason.NODE_FORGOTTEN, f"{detail}: `tdie apply --confirm-lost` if gone for good", world.forgotten)
    return bool(world.forgotten)


def _held_by_rename(world: World, step: Step) -> bool:
    """What runs under this name is another instance's by now, and is renamed first: an agent ends what it finds under the name."""
    for node, sighting in sorted(world.fleet.renaming.get(step.change.replica, {}).items()):
        if world.presence(node) is not Presence.LOST:
            step.held(
                HoldReason.IN_FLIGHT, f"{sighting.old_name} on {node} is renamed to {sighting.replica} first", (node,)
            )
    return step.hold is not None


def _held_by_mass_failure(world: World, spec: InstanceSpec, step: Step, lost: Sighting | None) -> bool:
    found, names = world.mass_failure, _names(world, spec, step.change.replica)
    if found is None or spec.per_node is not None or (lost is None and not world.may_have_run(*names)):
        return False
    detail, until = found.why_wait(lost.node if lost is not None else world.shown_on_lost(*names), world.now)
    if detail:
        step.held(HoldReason.MASS_FAILURE, detail, found.nodes, until)
    return bool(detail)


def _where_it_ran(world: World, name: str) -> NodeView | None:
    """The node that has forgotten its orders and shows a replica, rather one on which it was not stopped."""
    found = [view for view in world.forgetful if name in view.replicas]
    return min(found, key=lambda view: view.replicas[name].state is ReplicaState.STOPPED, default=None)


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
    if spec.per_node is None and (before := world.shown_on_lost(*_names(world, spec, name))):
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


def _keep(world: World, spec: InstanceSpec, case: Case, seats: Seats, name: str, home: Sighting, leaves: str) -> None:
    """A replica that is somewhere: leave, keep, rename, change or move it."""
    silent = world.fleet.sites[home.node].silent
    pair = Pair(name, spec, home.entry, silent, leaves, barred=bool(barred(home)))
    verdict = compare(pair).verdict
    if verdict is Verdict.LEAVE:
        verdict = compare(replace(pair, silent=False)).verdict
    _stand(spec, case, name, home, silent)
    if verdict is Verdict.KEEP:
        if not silent:
            _see_to_it(world, spec, case, name, home)
        elif home.row is None and not world.view(home.node).confirmed:
            _see_to_answer(world, spec, case, name, home)
        return
    step = _step(world, spec, seats, verdict, name, home, leaves)
    case.steps.append(step)
    if silent:
        step.puts, step.drops = None, ()
        _hold_silent(world, step, (home.node,))
    if verdict is Verdict.RENAME and home.entry is not None and home.entry.spec_hash != spec.spec_hash:
        after = compare(Pair(home.replica, spec, home.entry)).verdict
        later = _step(world, spec, seats, after, name, home, "")
        later.puts = None
        case.steps.append(later.held(HoldReason.IN_FLIGHT, f"{home.replica} is renamed first", (home.replica,)))


def _step(
    world: World, spec: InstanceSpec, seats: Seats, verdict: Verdict, name: str, home: Sighting, leaves: str
) -> Step:
    if verdict is Verdict.MOVE:
        among = eligible(home)
        node = "" if world.fleet.sites[home.node].silent else seats.take(home.node, among)
        step = move(world, spec, name, home, node, *why_move(world, home, leaves))
        if not node and not step.drops and not world.fleet.sites[home.node].silent:
            step.held(HoldReason.NO_PLACE, seats.why_none(home.node, among))
        if spec.per_node is None:
            _held_by_unheard(world, spec, step)
            _held_by_forgotten(world, step)
        return step
    node, reason = home.node, change_of_spec(home, spec)
    if verdict is Verdict.RENAME:
        reason = f"renamed from {home.replica}"
    change = make_change(
        world,
        verdict,
        Cause.COMMIT,
        replica=name,
        instance=spec.name,
        node=node,
        spec=spec,
        before=home,
        reason=reason,
    )
    step = Step(change, dead=not home.healthy, forced=world.fleet.sites[home.node].overdue(world.now))
    if verdict is Verdict.RENAME and home.entry is not None:
        policy = policy_of(world, spec)
        update = {"replica": name, "instance": spec.name, "policy": policy, "renamed_from": home.replica}
        step.puts = home.entry.model_copy(update=update)
        step.drops = ((node, home.replica),)
        if _is_leased(spec, home.entry):
            _rename_lease(world, step, home)
    else:
        step.puts = make_order(world, spec, name, node)
    return step


def move(world: World, spec: InstanceSpec, name: str, home: Sighting, node: str, cause: Cause, why: str) -> Step:
    """A replica goes to another node, with its new spec if it has one; to nowhere (empty) only when its time is up.

    One that was renamed and waits for the lease of its old name goes on under that, as one that is started elsewhere does.
    """
    from_node, site = home.node, world.fleet.sites[home.node]
    reason = ", ".join(part for part in (why, change_of_spec(home, spec)) if part)
    change = make_change(
        world, Verdict.MOVE, cause, replica=name, instance=spec.name, node=node, spec=spec, before=home,
        from_node=from_node, reason=reason,
    )  # fmt: skip
    step = Step(change, dead=not home.healthy, forced=site.overdue(world.now))
    if node:
        replica, instance = _first_name(world, spec, name, home)
        step.puts = make_order(world, spec, replica, node, instance=instance)
        if home.entry is not None and _is_leased(spec, home.entry):
            step.drops = ((from_node, home.replica),)  # told after the other has it: the lease says when that may start
    elif step.forced and not site.silent:
        step.drops = ((from_node, home.replica),)
    return step


def _rename_lease(world: World, step: Step, home: Sighting) -> None:
    """Hold it while something could start, or run, under the lease of the old name: two names have two leases."""
    others = (s.node for s in world.fleet.of(home.instance).get(home.replica, ()) if s.entry is not None)
    untold = tuple(node for node in others if node != home.node and not _is_gone(world.fleet.sites[node]))
    unsure = {node for node in world.unconfirmed() if not _is_gone(world.fleet.sites[node])}
    unheard = tuple(sorted({*world.unheard, *world.lost_unheard, *world.forgotten, *unsure} - {home.node, *untold}))
    if not _holds_lease(home):
        step.held(
            HoldReason.WAITING_LEASE, f"{home.replica} on {home.node} does not hold its lease yet", (home.replica,)
        )
    elif untold:
        detail = (
            f"{listed(untold)} was told to run {home.replica}, too, and may take its lease: it has to stop there first"
        )
        step.held(HoldReason.NODE_SILENT, detail, untold)
    elif unheard:
        detail = f"{listed(unheard)} did not answer yet, and may take the lease of {home.replica} if told to before"
        step.held(HoldReason.NODE_SILENT, detail, unheard)


def _is_gone(site: Site) -> bool:
    """Whether the node is lost, and Git says that it will not come back."""
    return not site.listed and site.presence in (Presence.LOST, Presence.ABSENT)


def _holds_lease(sighting: Sighting) -> bool:
    row = sighting.row
    return row is not None and row.lease is not None and row.lease.state == "held"


def _is_leased(spec: InstanceSpec, entry: ReplicaOrder) -> bool:
    return "none" not in (spec.policy.lease, entry.policy.lease)


def _stand(spec: InstanceSpec, case: Case, name: str, home: Sighting, silent: bool) -> None:
    if home.entry is not None:
        new = home.entry.spec_hash == spec.spec_hash
        case.standings.append(Standing(name, home.node, home.entry, home.row, home.healthy and not silent, new))


def _see_to_it(world: World, spec: InstanceSpec, case: Case, name: str, home: Sighting) -> None:
    """The node was told what is wanted: say so while its report differs, and bring its policy up to date."""
    entry = home.entry
    view = world.view(home.node)
    off = astray(home, view)
    _see_to_policy(world, spec, case, home, keeps_word=off is None or not off.drift)
    if off is None or entry is None:
        return
    if off.verdict is Verdict.START and off.lease is None and _moving(world, spec, name, home):
        return
    before = (
        None
        if home.row is None or off.verdict is Verdict.START
        else replace(home, entry=None, replica=home.row.replica)
    )
    cause = Cause.DRIFT if off.drift else Cause.COMMIT
    change = make_change(
        world,
        off.verdict,
        cause,
        replica=name,
        instance=spec.name,
        node=home.node,
        spec=spec,
        before=before,
        reason=off.why,
    )
    step = Step(change, in_flight=True)
    case.steps.append(step)
    failed = view.package_errors.get(entry.spec.package.digest)
    if off.given_up:
        step.held(HoldReason.ROLLOUT_HALTED, f"{home.node} gave up on it, {off.why}; it waits for a new spec", (name,))
    elif off.lease is not None:
        lapse = off.lease.until
        until = None if lapse is None or lapse <= world.now else Monotonic(lapse)
        on = (off.lease.holder or home.node,)
        step.held(HoldReason.WAITING_LEASE, f"{name} on {home.node} {off.lease}", on, until)
    elif failed and off.verdict is Verdict.START:
        step.held(HoldReason.PACKAGE_FAILED, f"{home.node} cannot install {entry.spec.package}: {failed}", (home.node,))
    elif off.drift and home.row is not None and not world.desired.cluster.sync.self_heal:
        _heal_when_asked(world, spec, case, step, home, entry)
    elif off.drift:
        step.held(HoldReason.IN_FLIGHT, f"{home.node} is healing it", (home.node,))
    else:
        step.held(HoldReason.IN_FLIGHT, f"sent to {home.node}", (home.node,))


def _see_to_answer(world: World, spec: InstanceSpec, case: Case, name: str, home: Sighting) -> None:
    """The node was sent it, has not said that it has it, and does not answer now."""
    change = make_change(
        world, Verdict.START, Cause.COMMIT, replica=name, instance=spec.name, node=home.node, spec=spec
    )
    step = Step(change, in_flight=True)
    case.steps.append(step)
    _hold_silent(world, step, (home.node,))


def _see_to_policy(world: World, spec: InstanceSpec, case: Case, home: Sighting, *, keeps_word: bool) -> None:
    """Bring the policy of an entry up to date; a replica that a person has started keeps the word until it is up."""
    entry, policy = home.entry, policy_of(world, spec)
    if entry is None or entry.policy is policy or entry.policy == policy:
        return
    if keeps_word or entry.policy != policy.model_copy(update={"heal": True}):
        case.patches.append((home.node, entry.model_copy(update={"policy": policy})))


def _heal_when_asked(
    world: World, spec: InstanceSpec, case: Case, step: Step, home: Sighting, entry: ReplicaOrder
) -> None:
    """Somebody stopped it and the cluster does not heal by itself: it starts once a person approves the change."""
    if entry.policy.heal or step.change.id in world.record.approved:
        step.held(HoldReason.IN_FLIGHT, f"{home.node} is healing it", (home.node,))
        if not entry.policy.heal:
            policy = spec.policy.model_copy(update={"heal": True})
            case.patches.append((home.node, entry.model_copy(update={"policy": policy})))
    else:
        step.held(HoldReason.SELF_HEAL_OFF, "sync.selfHeal is false: `tdie apply` starts it", (home.node,))


def _moving(world: World, spec: InstanceSpec, name: str, home: Sighting) -> bool:
    """Whether the replica is here because it leaves another node: that is one change, shown as the move."""
    return any(
        s.entry is not None and s.node != home.node and world.presence(s.node) is not Presence.LOST
        for s in world.fleet.of(spec.name).get(name, ())
    )


def _hold_silent(world: World, step: Step, nodes: tuple[str, ...]) -> None:
    detail = world.view(nodes[0]).detail
    step.held(HoldReason.NODE_SILENT, f"{listed(nodes)} does not answer" + (f": {detail}" if detail else ""), nodes)
