"""What must not be taken away now: at most maxParallel replicas of an instance are away at once."""

from __future__ import annotations

from agent.clock import Monotonic
from agent.wire import ReplicaState
from reconciler.model.desired import InstanceSpec
from reconciler.model.plan import Cause, HoldReason, Verdict
from reconciler.planning.cases import Case, Standing, Step, World
from reconciler.planning.explain import listed
from reconciler.planning.rollouts import canaries_first


def spare(world: World, case: Case) -> None:
    """Let through as many replacements as the update policy allows now, broken replicas first; hold the rest.

    A replica of the new spec is away until it has been healthy for minHealthyTime. Replacing one that does not work costs no
    availability, so it only waits for the replacements under way: a fix gets past what it fixes.
    """
    spec = case.spec
    waiting = [step for step in case.steps if step.takes_away and step.hold is None]
    if spec is None or not waiting:
        return
    going = {step.change.replica for step in waiting}
    soak = any(step.change.from_hash != step.change.to_hash for step in waiting)  # a move brings nothing untried
    away = [s for s in case.standings if s.new and s.replica not in going and not _back(s, spec, world.now, soak)]
    broken = [s for s in away if not s.healthy and missed_deadline(s, spec, world.now)]
    for standing in away:
        if standing not in broken:
            _note_lapses(case, standing, spec, world.now)
    if broken:
        _halt(case, waiting, broken)
        return
    stalls = _stalls_at(case, away, spec)
    if stalls is not None and stalls <= world.now:
        idle = f", nothing became healthy for {spec.update.progress_deadline:g} s"
        _halt(case, waiting, [s for s in away if not s.healthy], idle)
        return
    if stalls is not None:
        case.lapses.append(stalls)
    waiting = canaries_first(world, case, waiting)
    most = max(1, spec.update.max_parallel.of(len(case.standings) + case.missing))
    under_way = len(away)
    elsewhere = {step.change.replica for step in waiting if step.hands_over}  # a copy of it works still
    gone = [s for s in case.standings if not s.healthy and s.replica not in elsewhere]
    down = under_way + sum(1 for s in gone if not s.new or s.replica in going)
    down += sum(_was_there(world, step) for step in case.steps)
    unseen = sorted({s.node for s in case.standings if not s.healthy and world.fleet.sites[s.node].silent})
    picked = 0
    for step in sorted(waiting, key=lambda step: not step.dead):
        costs = 0 if step.dead else 1
        if under_way + picked < most and (step.dead or down + costs <= most):
            picked += 1
            down += costs
        else:
            _hold(step, away, spec, most, down, unseen)


def _was_there(world: World, step: Step) -> bool:
    """Whether a replica that is to be started ran before, or may run where nobody can see it: it is missed, unlike a new one."""
    if step.change.verdict is not Verdict.START or step.in_flight:
        return False
    unseen = step.hold is not None and step.hold.reason in (HoldReason.NODE_SILENT, HoldReason.NODE_FORGOTTEN)
    gone = step.change.cause in (Cause.NODE_LOST, Cause.NODE_REMOVED, Cause.LEASE)
    # What is ordered anew is ordered as it is wanted now, so that what runs there may be replaced at once.
    ended = step.adopts and (step.dead or step.hold is None)
    return unseen or gone or ended or world.may_have_run(step.change.replica) or world.ran(step.change.replica)


def missed_deadline(standing: Standing, spec: InstanceSpec, now: Monotonic) -> bool:
    """Whether a new replica has failed for good, or was given healthyDeadline and is not healthy."""
    row = standing.row
    if row is None or row.spec_hash != standing.entry.spec_hash or _waits(standing):
        return False
    return row.state is ReplicaState.FAILED or now >= row.since + spec.update.healthy_deadline


def _back(standing: Standing, spec: InstanceSpec, now: Monotonic, soak: bool) -> bool:
    row = standing.row
    if row is None or not standing.healthy:
        return False
    return not soak or now >= row.since + spec.update.min_healthy_time


def _waits(standing: Standing) -> bool:
    """Whether it could not have become healthy, because its lease is not held."""
    return standing.row is not None and standing.row.lease is not None and standing.row.lease.missing


def _note_lapses(case: Case, standing: Standing, spec: InstanceSpec, now: Monotonic) -> None:
    if standing.row is not None and standing.row.spec_hash == standing.entry.spec_hash and not _waits(standing):
        after = spec.update.min_healthy_time if standing.healthy else spec.update.healthy_deadline
        lapse = Monotonic(standing.row.since + after)
        if lapse > now:
            case.lapses.append(lapse)


def _stalls_at(case: Case, away: list[Standing], spec: InstanceSpec) -> Monotonic | None:
    """When progressDeadline lapses: counted from the last new replica that became healthy or was ordered.

    Only nodes that have accepted the order count, so it does not lapse while a window, an approval or a lock is waited for.
    None while no replica is on its way.
    """
    moving = [s for s in away if not s.healthy and not _waits(s)]
    ordered = [s.row.ordered_since for s in moving if s.row and s.row.ordered_hash == s.entry.spec_hash]
    if not ordered:
        return None
    became_healthy = [s.row.since for s in case.standings if s.new and s.healthy and s.row is not None]
    return Monotonic(max(*ordered, *became_healthy, 0.0) + spec.update.progress_deadline)


def _halt(case: Case, waiting: list[Step], broken: list[Standing], idle: str = "") -> None:
    total = len(case.standings) + case.missing
    errors = [s.row.last_error for s in broken if s.row is not None and s.row.last_error]
    error = errors[0] if errors else "" if idle else "not healthy in time"
    detail = f"{len(broken)}/{total} unhealthy{idle}{f': {error}' if error else ''}"
    for step in waiting:
        step.held(HoldReason.ROLLOUT_HALTED, detail, tuple(s.replica for s in broken))


def _hold(step: Step, away: list[Standing], spec: InstanceSpec, most: int, down: int, unseen: list[str]) -> None:
    names = tuple(s.replica for s in away)
    soaking = [s for s in away if s.healthy and s.row is not None]
    if away and len(soaking) == len(away):
        until = Monotonic(min(s.row.since for s in soaking if s.row is not None) + spec.update.min_healthy_time)
        detail = f"{soaking[0].replica} is healthy, but not for {spec.update.min_healthy_time:g} s yet"
        step.held(HoldReason.SOAKING, detail, names, until)
    else:
        count = max(down, len(away))
        detail = f"at most {most} of {step.change.instance} may be away, {count} {'is' if count == 1 else 'are'}"
        if unseen:
            quiet = f"{listed(unseen)} {'does' if len(unseen) == 1 else 'do'} not answer"
            step.held(HoldReason.ROLLOUT_PAUSED, f"{detail}: {quiet}", tuple(unseen))
        else:
            step.held(HoldReason.TOO_FEW_LEFT, detail, names)
