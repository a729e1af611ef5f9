"""Decide what every node should run next; nothing outside is touched."""

from __future__ import annotations

from dataclasses import replace

from agent.clock import Monotonic
from reconciler.model.desired import DesiredState
from reconciler.model.observed import ObservedState, Presence, Record
from reconciler.model.plan import Change, Hold, NodeTarget, Plan, Verdict
from reconciler.planning import handover, holds, keep_up, leftovers, prune, rollouts, waves
from reconciler.planning.cases import Case, Step, World
from reconciler.planning.checks import check
from reconciler.planning.examine import examine, stay_of
from reconciler.planning.fleet import forgetful
from reconciler.planning.ids import digest_of_changes
from reconciler.planning.mass_failure import mass_failure
from reconciler.planning.memo import Memo
from reconciler.planning.outlook import Outlook
from reconciler.planning.packages import Wanted, failing_everywhere, fetch_first
from reconciler.planning.place import Openings
from reconciler.planning.rebalance import gate as gate_rebalancing
from reconciler.planning.rebalance import rebalance
from reconciler.planning.targets import edits, target

_SHOWN_ORDER = (Verdict.STOP, Verdict.REPLACE, Verdict.MOVE, Verdict.RECONFIGURE, Verdict.RENAME, Verdict.START)
_RANK = {verdict: rank for rank, verdict in enumerate(_SHOWN_ORDER)}


def plan(
    desired: DesiredState, observed: ObservedState, record: Record, now: Monotonic, memo: Memo | None = None
) -> Plan:
    """The changes that would make the fleet what Git asks for, why some of them wait, and what to send now.

    Pure apart from `memo`, which is brought up to date: pass the same one each time and the cost follows the change.
    PlanBroken when the result would break a promise every plan keeps; the memo then starts anew.
    """
    memo = Memo() if memo is None else memo
    unchanged = memo.same(desired, observed, record, now)
    if unchanged is not None:
        return unchanged
    try:
        made = _plan(desired, observed, record, now, memo)
    except BaseException:
        memo.forget()
        raise
    memo.last = (desired, observed, record, made)
    return made


def _plan(desired: DesiredState, observed: ObservedState, record: Record, now: Monotonic, memo: Memo) -> Plan:
    world = _world(desired, observed, record, now, memo)
    cases = _examined(world, memo)  # place · compare
    notes = rebalance(world, cases)
    failing = failing_everywhere(world)
    cases = dict(sorted(cases.items()))
    found = list(cases.values())
    changes = _in_order(found)
    digest = digest_of_changes(change.id for change in changes)
    for case in found:
        holds.gate(world, case, record)
    waves.gate(cases, memo.waves, desired.instances.__contains__)
    ahead: Wanted = {}
    for case in found:
        fetch_first(world, case, ahead)
        keep_up.spare(world, case)
        rollouts.judge(world, case)
    gate_rebalancing(found)
    for case in found:
        leftovers.gate(case)
    prune.gate(world, found, record, digest)
    handover.gate(found)
    made = Plan(
        commit=desired.commit,
        changes=changes,
        holds=_holds_of(found, changes),
        targets=_targets(world, found, ahead, memo),
        look_again_at=_look_again_at(found),
        warnings=observed.warnings,
        notes=(*failing, *notes),
        digest=digest,
        prune_digest=prune.prune_digest(found),
        lost_digest="" if world.mass_failure is None else world.mass_failure.digest,
        rolled_back=record.rolled_back,
        stable={case.instance: case.spec.spec_hash for case in found if case.stable and case.spec is not None},
        failed={case.instance: case.failed for case in found if case.failed},
        healthy=not failing and all(case.quiet for case in found),
    )
    check(world, made, found)
    # What left Git is looked at as long as anything of it is there: whether another instance takes it over can change elsewhere.
    memo.restless = {case.instance for case in found if not case.quiet or case.settling or case.spec is None}
    return made


def _world(desired: DesiredState, observed: ObservedState, record: Record, now: Monotonic, memo: Memo) -> World:
    """What the rules may look at, with the fleet indexed."""
    cluster = desired.cluster
    memo.fleet.look(cluster, observed)
    memo.rooms.start()
    if memo.reordered(desired):
        memo.positions = waves.positions(desired.instances)
        memo.waves = waves.wave_numbers(desired.instances)
    listed = [
        (site, observed.nodes[name])
        for name, site in memo.fleet.sites.items()
        if site.listed and name in observed.nodes
    ]
    lost = tuple(site.name for site, _ in listed if site.presence is Presence.LOST)
    untold = [(site, view) for site, view in listed if view.assignment is None and view.accepted is None]
    outlook = Outlook(memo.fleet, memo.rooms, memo.fleet.situation(desired.commit), cluster.sync.prune != "false")
    return World(
        desired=desired,
        observed=observed,
        now=now,
        fleet=memo.fleet,
        rooms=memo.rooms,
        openings=Openings(memo.fleet),
        outlook=outlook,
        positions=memo.positions,
        unheard={site.name: view.may_run for site, view in untold if site.silent},
        lost_unheard={site.name: view for site, view in untold if site.presence is Presence.LOST},
        forgotten=tuple(s.name for s, _ in untold if record.rewound and s.presence in (Presence.ABSENT, Presence.LOST)),
        forgetful=tuple(view for _, view in listed if forgetful(view) or (view.assignment is None and view.ran)),
        lost=lost,
        record=record,
        mass_failure=mass_failure(
            {site.name: view.since for site, view in listed if site.presence is Presence.LOST or view.vanishing},
            cluster.failover,
            len(cluster.nodes),
            record.confirmed_lost,
        ),
    )


def _examined(world: World, memo: Memo) -> dict[str, Case]:
    """Every instance that may not be quiet, in name order; those in Git first, as others may live on in them."""
    desired = world.desired
    names = sorted(memo.open_instances(desired))
    stays = {name: stay_of(world, desired.instances[name]) for name in names if name in desired.instances}
    world.outlook.stays, world.outlook.gone = stays, frozenset(names) - stays.keys()
    cases = {name: examine(world, stay) for name, stay in stays.items()}
    claimed = {claim for stay in stays.values() for claim in stay.claimed}
    for name in names:
        if name not in desired.instances and world.fleet.of(name):
            cases[name] = leftovers.gone(world, name, claimed)
    return cases


def _in_order(cases: list[Case]) -> tuple[Change, ...]:
    """What is destroyed comes first, then waves, instances and replicas."""
    changes = [step.change for case in cases for step in case.steps]
    return tuple(
        sorted(changes, key=lambda c: (_RANK[c.verdict], c.wave, c.instance, _natural(c.replica), c.node, c.from_node))
    )


def _natural(replica: str) -> tuple[str, int]:
    head, _, number = replica.rpartition(".")
    return (head, int(number)) if number.isdigit() else (replica, 0)


def _holds_of(cases: list[Case], changes: tuple[Change, ...]) -> tuple[Hold, ...]:
    by_id = {step.change.id: step.hold for case in cases for step in case.steps}
    return tuple(hold for change in changes if (hold := by_id[change.id]) is not None)


def _targets(world: World, cases: list[Case], ahead: Wanted, memo: Memo) -> dict[str, NodeTarget]:
    if world.desired.cluster.sync.mode == "dry-run":
        return {}
    edited = edits(cases)
    fleet = memo.fleet
    everywhere = fleet.moved or memo.last is None
    nodes = set(fleet.sites) if everywhere else fleet.changed | memo.loose | edited.keys() | ahead.keys()
    found = {}
    forgotten = {node for node in nodes if node in fleet.views and forgetful(fleet.views[node])}
    waiting = {step.change.node for case in cases for step in case.steps if _waits(step)} if forgotten else set()
    for node in sorted(nodes - (forgotten & waiting)):  # what runs there would be stopped by an assignment without it
        next_one = target(world, node, edited.get(node, {}), ahead, memo.texts)
        if next_one is not None:
            found[node] = next_one
    memo.loose = found.keys() | edited.keys() | ahead.keys() | forgotten
    for giver, takers in handover.takers(cases).items():
        if giver in found:
            found[giver] = replace(found[giver], after=tuple(taker for taker in takers if taker in found))
    return found


def _waits(step: Step) -> bool:
    """Whether something goes on without an order for now."""
    return step.adopts and step.hold is not None and not step.in_flight


def _look_again_at(cases: list[Case]) -> Monotonic | None:
    lapses = [lapse for case in cases for lapse in case.lapses]
    lapses += [
        step.hold.until
        for case in cases
        for step in case.steps
        if step.hold is not None and step.hold.until is not None
    ]
    return min(lapses, default=None)
