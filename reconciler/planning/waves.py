"""What goes before what: `wave` numbers first, then what an instance depends on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

from reconciler.model.desired import InstanceSpec
from reconciler.model.plan import Cause, HoldReason, Verdict
from reconciler.planning.cases import Case, Step
from reconciler.planning.checks import PlanBroken
from reconciler.planning.explain import listed

UNGATED = frozenset(
    {Cause.DRIFT, Cause.NODE_LOST, Cause.DRAIN, Cause.LEASE}
)  # healing never waits for a rollout elsewhere


def positions(instances: Mapping[str, InstanceSpec]) -> dict[str, int]:
    """Each instance's place in the order of waves, from 0. An instance comes after all it depends on."""
    ranks: dict[str, tuple[int, int]] = {}
    for name in _dependencies_first(instances):
        spec = instances[name]
        before = [ranks[d.instance] for d in spec.depends_on if d.instance in ranks]
        wave = max([spec.wave, *(w for w, _ in before)])
        ranks[name] = (wave, max([0, *(level + 1 for w, level in before if w == wave)]))
    order = {rank: position for position, rank in enumerate(sorted(set(ranks.values())))}
    return {name: order[rank] for name, rank in ranks.items()}


def wave_numbers(instances: Mapping[str, InstanceSpec]) -> dict[str, int]:
    """Each instance's wave, raised to that of what it depends on."""
    waves: dict[str, int] = {}
    for name in _dependencies_first(instances):
        spec = instances[name]
        waves[name] = max([spec.wave, *(waves[d.instance] for d in spec.depends_on if d.instance in waves)])
    return waves


def _dependencies_first(instances: Mapping[str, InstanceSpec]) -> Iterable[str]:
    if not any(spec.depends_on for spec in instances.values()):
        return sorted(instances)
    graph = {
        name: sorted(d.instance for d in spec.depends_on if d.instance in instances)
        for name, spec in sorted(instances.items())
    }
    try:
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise PlanBroken(
            f"instances depend on each other: {' → '.join(error.args[1])}", code="DEPENDENCY_CYCLE"
        ) from error


def settled(case: Case) -> bool:
    """Whether later waves may start as far as this instance goes; a suspended one keeps nobody waiting."""
    return case.spec is None or case.spec.suspend or (case.healthy and all(step.rebalances for step in case.steps))


def ready(case: Case | None, condition: str) -> str:
    """Why an instance cannot be relied on yet; empty if it can. No case: nothing is open there."""
    if case is None:
        return ""
    open_steps = [
        s
        for s in case.steps
        if s.change.verdict is not Verdict.STOP and not s.rebalances and not (case.spec and case.spec.suspend)
    ]
    if open_steps:
        return f"{case.instance} still changes: {open_steps[0].change.replica}"
    if condition == "started":
        return "" if case.started else f"{case.instance} is not started"
    return "" if case.healthy else f"{case.instance} is not healthy"


def gate(cases: Mapping[str, Case], waves: Mapping[str, int], known: Callable[[str], bool]) -> None:
    """Hold what must wait for an earlier wave or a dependency. `known`: whether an instance is in Git."""
    unsettled = sorted((waves[name], name) for name, case in cases.items() if name in waves and not settled(case))
    names = [name for _, name in unsettled]
    for name, case in cases.items():
        if case.spec is None:
            continue
        earlier = names[: bisect_left(unsettled, (waves[name], ""))]
        late = _late_dependencies(case.spec, cases, known)
        for step in case.steps:
            _gate(step, earlier, late)


def _late_dependencies(
    spec: InstanceSpec, cases: Mapping[str, Case], known: Callable[[str], bool]
) -> list[tuple[str, str]]:
    late = []
    for dependency in spec.depends_on:
        name = dependency.instance
        why = ready(cases.get(name), dependency.condition) if known(name) else f"{name} is not in Git"
        if why:
            late.append((name, why))
    return late


def _gate(step: Step, earlier: list[str], late: list[tuple[str, str]]) -> None:
    verdict = step.change.verdict
    leaving = verdict is Verdict.MOVE and step.puts is None and step.drops  # the second half of a move
    if step.in_flight or step.adopts or verdict in (Verdict.RENAME, Verdict.STOP) or leaving:
        return
    if late:
        step.held(HoldReason.DEPENDENCY, late[0][1], tuple(name for name, _ in late))
    if earlier and step.change.cause not in UNGATED:
        detail = f"an earlier wave is not settled: {listed(earlier)}"
        step.held(HoldReason.EARLIER_WAVE, detail, tuple(earlier[:10]))
