"""A replica that is somewhere: it is left, kept, renamed, changed or moved."""

from __future__ import annotations

from dataclasses import replace

from reconciler.model.desired import InstanceSpec
from reconciler.model.observed import Presence
from reconciler.model.plan import Cause, HoldReason, Verdict
from reconciler.planning.cases import Case, Standing, Step, World, change_of_spec, make_change, make_order, policy_of
from reconciler.planning.compare import Pair, compare
from reconciler.planning.explain import listed
from reconciler.planning.fleet import Sighting, Site
from reconciler.planning.homes import holds_lease, is_leased, runs_unleased
from reconciler.planning.in_flight import see_to_answer, see_to_it, see_to_policy
from reconciler.planning.place import Seats
from reconciler.planning.silence import held_by_forgotten, held_by_unheard, hold_silent
from reconciler.planning.starting import first_name
from reconciler.planning.stay import barred, eligible, why_move


def keep(world: World, spec: InstanceSpec, case: Case, seats: Seats, name: str, home: Sighting, leaves: str) -> None:
    """A replica that is somewhere: leave, keep, rename, change or move it."""
    silent = world.fleet.sites[home.node].silent
    pair = Pair(name, spec, home.entry, silent, leaves, barred=bool(barred(home)))
    verdict = compare(pair).verdict
    if verdict is Verdict.LEAVE:
        verdict = compare(replace(pair, silent=False)).verdict
    _stand(spec, case, name, home, silent)
    if verdict is Verdict.KEEP:
        if not silent:
            see_to_it(world, spec, case, name, home)
        elif home.row is None and not world.view(home.node).confirmed:
            see_to_answer(world, spec, case, name, home)
        return
    step = _step(world, spec, seats, verdict, name, home, leaves)
    case.steps.append(step)
    if silent:
        step.puts, step.drops = None, ()
        hold_silent(world, step, (home.node,))
    elif verdict is Verdict.MOVE and spec.policy.lease != "none" and not barred(home) and runs_unleased(home):
        _lease_first(world, spec, case, step, home)
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
            held_by_unheard(world, spec, step)
            held_by_forgotten(world, step)
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
        if is_leased(spec, home.entry):
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
        replica, instance = first_name(world, spec, name, home)
        step.puts = make_order(world, spec, replica, node, instance=instance)
        if home.entry is not None and is_leased(spec, home.entry):
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
    if not holds_lease(home):
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


def _lease_first(world: World, spec: InstanceSpec, case: Case, step: Step, home: Sighting) -> None:
    """Where it runs it takes the lease that it did not need so far; that says when another one may start. A deadline waits not."""
    if not step.forced:
        see_to_policy(world, spec, case, home, keeps_word=True)
        says = f": {home.node} {home.row.lease}" if home.row is not None and home.row.lease is not None else ""
        detail = f"{home.replica} runs on {home.node} without a lease and takes it before it moves{says}"
        step.held(HoldReason.WAITING_LEASE, detail, (home.node,))


def _is_gone(site: Site) -> bool:
    """Whether the node is lost, and Git says that it will not come back."""
    return not site.listed and site.presence in (Presence.LOST, Presence.ABSENT)


def _stand(spec: InstanceSpec, case: Case, name: str, home: Sighting, silent: bool) -> None:
    if home.entry is not None:
        new = home.entry.spec_hash == spec.spec_hash
        case.standings.append(Standing(name, home.node, home.entry, home.row, home.healthy and not silent, new))
