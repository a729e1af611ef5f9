"""What is true of every plan, whatever the rules above decided. A plan that breaks one is never published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from agent.errors import TdieError
from agent.wire import ReplicaOrder
from reconciler.model.plan import NodeTarget, Plan, Verdict

if TYPE_CHECKING:
    from reconciler.planning.cases import Case, World


class PlanBroken(TdieError):
    """The plan contradicts itself; nothing of it may be carried out."""

    code = "PLAN_BROKEN"


def check(world: World, plan: Plan, cases: Iterable[Case]) -> None:
    """Return when the plan keeps every promise; PlanBroken names the first one it does not."""
    _each_change_once(plan)
    stopping = {(c.node, c.replica) for c in plan.changes if c.verdict is Verdict.STOP}
    moves = [
        (c.from_node, name) for c in plan.changes if c.verdict is Verdict.MOVE for name in (c.replica, c.from_replica)
    ]
    stopping |= set(moves)
    stopping |= {(c.node, c.from_replica) for c in plan.changes if c.verdict is Verdict.RENAME}
    moving = {name for _, name in moves} | {c.replica for c in plan.changes if c.verdict is Verdict.STOP}
    for name, target in plan.targets.items():
        _target_is_whole(world, name, target)
        _stops_have_a_cause(world, target, stopping)
        _one_home_each(world, target, moving)
    _nobody_starts_twice(world, plan)
    for case in cases:
        _not_too_many_away(case)


def _each_change_once(plan: Plan) -> None:
    ids = Counter(change.id for change in plan.changes)
    for change, count in ids.items():
        if count > 1:
            raise PlanBroken(f"change {change} appears {count} times")
    for hold in plan.holds:
        if hold.change not in ids:
            raise PlanBroken(f"hold {hold.reason} of {hold.replica} belongs to no change")


def _target_is_whole(world: World, name: str, target: NodeTarget) -> None:
    site = world.fleet.sites.get(name)
    if site is None or not site.alive or target.node != name:
        raise PlanBroken(f"{name} would be sent an assignment, but it does not answer")
    if world.observed.nodes[name].locked_by:
        raise PlanBroken(f"{name} would be changed, but it is locked")
    names = [order.replica for order in target.replicas]
    if names != sorted(set(names)):
        raise PlanBroken(f"replicas of {name} are not in order, or one is there twice")
    keys = [(p.package.name, p.package.version, p.package.digest) for p in target.packages]
    if keys != sorted(set(keys)):
        raise PlanBroken(f"packages of {name} are not in order, or one is there twice")
    digests = {key[2] for key in keys}
    for order in target.replicas:
        spec = order.spec
        needed = {spec.package.digest} | ({spec.publisher.package.digest} if spec.publisher else set())
        if not needed <= digests:
            raise PlanBroken(f"{order.replica} on {name} needs a package that its assignment does not bring")


def _stops_have_a_cause(world: World, target: NodeTarget, stopping: set[tuple[str, str]]) -> None:
    kept = {order.replica for order in target.replicas}
    for entry in _held(world, target.node):
        if entry.replica not in kept and (target.node, entry.replica) not in stopping:
            raise PlanBroken(f"{entry.replica} on {target.node} would stop without a change that says so")


def _one_home_each(world: World, target: NodeTarget, moving: set[str]) -> None:
    """A replica that is new on this node has no other home that answers, unless it is being moved."""
    held = {entry.replica for entry in _held(world, target.node)}
    for order in target.replicas:
        if order.replica in held or order.replica in moving:
            continue
        for sighting in world.fleet.of(order.instance).get(order.replica, ()):
            there = world.fleet.sites[sighting.node]
            if sighting.node == target.node or sighting.entry is None or world.forsaken(sighting):
                continue
            if there.alive or there.silent:
                raise PlanBroken(f"{order.replica} would run on {target.node} and on {sighting.node}")


def _nobody_starts_twice(world: World, plan: Plan) -> None:
    homes: dict[str, str] = {}
    for name, target in plan.targets.items():
        held = {entry.replica for entry in _held(world, name)}
        for order in target.replicas:
            if order.replica not in held and homes.setdefault(order.replica, name) != name:
                raise PlanBroken(f"{order.replica} would start on {homes[order.replica]} and on {name}")


def _held(world: World, node: str) -> tuple[ReplicaOrder, ...]:
    assignment = world.observed.nodes[node].assignment
    return () if assignment is None else assignment.replicas


def _not_too_many_away(case: Case) -> None:
    spec = case.spec
    if spec is None:
        return
    going = [s for s in case.steps if s.takes_away and s.hold is None]
    if not going:
        return
    most = max(1, spec.update.max_parallel.of(len(case.standings) + case.missing))
    if len(going) > most:
        raise PlanBroken(f"{len(going)} replicas of {case.instance} would be away, at most {most} may")
