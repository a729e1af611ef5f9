"""How the rollout of one instance goes: canaries first, gone well, or failed for good."""

from __future__ import annotations

from agent.clock import Monotonic
from agent.wire import ReplicaState
from reconciler.model.desired import InstanceSpec
from reconciler.model.plan import HoldReason
from reconciler.planning.cases import Case, Standing, Step, World
from reconciler.planning.explain import listed

# What a new version may be blamed for; Stopped is a person's doing, and while it is Pending its package is still on its way.
_BLAMED = frozenset({ReplicaState.STARTING, ReplicaState.STARTED, ReplicaState.BACKOFF, ReplicaState.FAILED})


def open_rollout(world: World, spec: InstanceSpec) -> bool:
    """Whether the wanted spec has not been seen to run well on all replicas yet, of an instance for which that is remembered."""
    return spec.update.tracked and world.record.stable.get(spec.name) != spec.spec_hash


def judge(world: World, case: Case) -> None:
    """Note on the case when its rollout has gone well, or failed so that the commit may be taken back."""
    spec = case.spec
    if spec is None or not open_rollout(world, spec):
        return
    now = world.now
    if not case.missing and case.standings and all(s.new and s.healthy for s in case.standings):
        done = max((s.row.since for s in case.standings if s.row is not None), default=Monotonic(0.0))
        soaked = Monotonic(done + spec.update.min_healthy_time)
        if now >= soaked:
            case.stable = True
        else:
            case.settling = True
            case.lapses.append(soaked)
    elif spec.update.auto_revert and not world.record.rolled_back:
        _fails(world, case, spec)


def _fails(world: World, case: Case, spec: InstanceSpec) -> None:
    known = spec.name in world.record.stable
    trying = [s for s in case.standings if s.new and _to_blame(world, s)]
    trying = [s for s in trying if known or s.entry.commit == world.desired.commit]
    case.settling = case.settling or bool(trying)
    for standing in trying:
        lapse = Monotonic(_since(standing) + spec.update.healthy_deadline)
        if world.now < lapse and not _given_up(standing):
            case.lapses.append(lapse)
    broken = [s for s in trying if _given_up(s) or world.now >= _since(s) + spec.update.healthy_deadline]
    if broken:
        errors = [s.row.last_error for s in broken if s.row is not None and s.row.last_error]
        total = len(case.standings) + case.missing
        case.failed = f"{len(broken)}/{total} unhealthy: {errors[0] if errors else 'not healthy in time'}"
        return
    stuck = _stuck_since(case, trying, spec)
    if stuck is not None and world.now >= stuck:
        case.failed = f"nothing became healthy for {spec.update.progress_deadline:g} s"
    elif stuck is not None:
        case.lapses.append(stuck)


def _to_blame(world: World, standing: Standing) -> bool:
    """Whether it runs the new spec on a node that answers, and is not well."""
    row = standing.row
    if row is None or row.healthy or world.fleet.sites[standing.node].silent:
        return False
    return row.spec_hash == standing.entry.spec_hash and row.state in _BLAMED and not (row.lease and row.lease.missing)


def _given_up(standing: Standing) -> bool:
    return standing.row is not None and standing.row.state is ReplicaState.FAILED


def _since(standing: Standing) -> Monotonic:
    return Monotonic(0.0) if standing.row is None else standing.row.since


def _stuck_since(case: Case, trying: list[Standing], spec: InstanceSpec) -> Monotonic | None:
    """When progressDeadline lapses for those that were ordered, counted from the last one that became healthy."""
    ordered = [s.row.ordered_since for s in trying if s.row is not None and s.row.ordered_hash == s.entry.spec_hash]
    if not ordered:
        return None
    well = [s.row.since for s in case.standings if s.new and s.healthy and s.row is not None]
    return Monotonic(max(*ordered, *well, 0.0) + spec.update.progress_deadline)


def canaries_first(world: World, case: Case, waiting: list[Step]) -> list[Step]:
    """Those of the waiting steps that may go although only canaries run the new spec yet; the others are held."""
    spec = case.spec
    if spec is None or not spec.update.canary or world.record.rolled_back or not open_rollout(world, spec):
        return waiting
    if world.record.promoted.get(spec.name) == spec.spec_hash:
        return waiting
    new = [s for s in case.standings if s.new]
    replacing = [step for step in waiting if step.change.from_hash != step.change.to_hash]
    replacing.sort(key=lambda step: not step.dead)
    rest = replacing[max(0, spec.update.canary - len(new)) :]
    _hold_rest(world, spec, new, rest)
    return [step for step in waiting if step not in rest]


def _hold_rest(world: World, spec: InstanceSpec, new: list[Standing], rest: list[Step]) -> None:
    soak = spec.update.min_healthy_time
    names = tuple(s.replica for s in new)
    late = [s for s in new if not s.healthy or world.now < _since(s) + soak]
    until = None
    if late and all(s.healthy for s in late):
        until = Monotonic(max(_since(s) for s in late) + soak)
    for step in rest:
        if len(new) < spec.update.canary:
            most = "a canary runs" if spec.update.canary == 1 else f"{spec.update.canary} canaries run"
            step.held(HoldReason.CANARY, f"{most} {step.change.to_package} first", names)
        elif late:
            step.held(
                HoldReason.CANARY,
                f"{listed([s.replica for s in late])} is not healthy for {soak:g} s yet",
                names,
                until,
            )
        else:
            many = f"canary {names[0]} is" if len(names) == 1 else f"canaries {listed(names)} are"
            step.held(HoldReason.CANARY_WAITS, f"{many} healthy: 'tdie approve {spec.name}' goes on", names)
