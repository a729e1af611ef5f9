"""Stopping what left Git: never too much at once, never what is protected, and after what starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from reconciler.model.observed import Record
from reconciler.model.plan import HoldReason, Verdict
from reconciler.planning.cases import Case, Step, World
from reconciler.planning.explain import counted, listed
from reconciler.planning.fleet import Sighting
from reconciler.planning.ids import digest_of_changes

_STARTING = frozenset({HoldReason.IN_FLIGHT, HoldReason.PACKAGE_FETCHING})


def prune_digest(cases: Iterable[Case]) -> str:
    """16 hex digits over what would be stopped because it left Git; empty when nothing would."""
    ids = [step.change.id for case in cases for step in case.steps if step.prunes]
    return digest_of_changes(ids) if ids else ""


def gate(world: World, cases: list[Case], record: Record, plan_digest: str) -> None:
    """Hold the whole prune set beyond the limit, or until the starts that can go have gone."""
    steps = [step for case in cases for step in case.steps if step.prunes]
    open_steps = [step for step in steps if not step.in_flight]
    if not open_steps:
        return
    sync = world.desired.cluster.sync
    if sync.prune == "false":
        _hold_all(open_steps, HoldReason.PRUNE_OFF, "sync.prune is false")
        return
    confirmed = record.confirmed_prune != "" and record.confirmed_prune in (plan_digest, prune_digest(cases))
    if (silent := sorted({*world.unheard, *world.forgotten})) and not confirmed and sync.prune != "all":
        detail = f"{listed(silent)} did not answer yet: how much would be stopped is not known"
        _hold_all(open_steps, HoldReason.NODE_SILENT, detail, tuple(silent))
        return
    limit = _beyond(world, open_steps)
    if limit and not confirmed:
        _hold_all(open_steps, HoldReason.PRUNE_HELD, limit)
    elif not limit:  # what was confirmed is exactly this set, so it goes at once
        _after_starts(cases, open_steps)


def _beyond(world: World, steps: list[Step]) -> str:
    """Why this much may not go without a person's word; empty if it may."""
    renamed = {spec.moved_from: spec.name for spec in world.desired.instances.values() if spec.moved_from}
    stopped = {step.change.instance for step in steps}
    later = {name: node for name, node in _on_lost(world) if name not in stopped and name not in renamed}
    protected = sorted(
        {s.instance for s in _entries(world, stopped) if s.entry is not None and s.entry.policy.protected}
    )
    live = len({renamed.get(name, name) for name in (*world.fleet.by_instance, *later)})  # half renamed: two names
    share = world.desired.cluster.sync.max_prune
    most = max(1, share.of(live))
    if protected:
        return f"{listed(protected)} {'is' if len(protected) == 1 else 'are'} protected"
    if (going := len(stopped) + len(later)) > most and world.desired.cluster.sync.prune != "all":
        back = f" ({listed(sorted(later))} on the return of {listed(sorted(set(later.values())))})" if later else ""
        return f"{going}/{counted(live, 'instance')} would be stopped{back}, limit={share}"
    return ""


def _on_lost(world: World) -> Iterator[tuple[str, str]]:
    """Instances that are not in Git, each with a lost node that has them: they are stopped when it returns, and count now."""
    wanted = world.desired.instances
    for node in world.lost:
        for sighting in world.fleet.on(node):
            if sighting.entry is not None and sighting.instance not in wanted:
                yield sighting.instance, node
        view = world.lost_unheard.get(node)
        for replica in () if view is None else view.shown:
            if (instance := replica.partition(".")[0]) not in wanted:
                yield instance, node


def _entries(world: World, instances: Iterable[str]) -> Iterator[Sighting]:
    for instance in instances:
        for sightings in world.fleet.of(instance).values():
            yield from sightings


def _after_starts(cases: list[Case], steps: list[Step]) -> None:
    """Starts precede stops; a start that cannot go now (no place, not approved, …) keeps nothing running."""
    starting = sorted({step.change.instance for case in cases for step in case.steps if _starts(step)})
    if starting:
        _hold_all(steps, HoldReason.EARLIER_WAVE, f"{listed(starting)} still starts", tuple(starting[:10]))


def _starts(step: Step) -> bool:
    if step.change.verdict not in (Verdict.START, Verdict.RENAME):
        return False
    return step.hold is None or step.hold.reason in _STARTING


def _hold_all(steps: list[Step], reason: HoldReason, detail: str, on: tuple[str, ...] = ()) -> None:
    for step in steps:
        step.held(reason, detail, on)
