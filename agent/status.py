"""Pure: one replica as its node reports it, from what was ordered, what the keeper sees, and what a probe says."""

from __future__ import annotations

from agent.apply import Failure
from agent.errors import Invalid
from agent.keeper.protocol import HostRow
from agent.probes import Result
from agent.wire import LeaseStatus, PackageRef, ReplicaOrder, ReplicaState, ReplicaStatus


def status_row(
    replica: str,
    order: ReplicaOrder | None,
    row: HostRow | None,
    *,
    failure: Failure | None = None,
    probe: Result | None = None,
    before: ReplicaStatus | None = None,
    ordered: tuple[str, float] | None = None,
    lease: LeaseStatus | None = None,
    now: float = 0.0,
) -> ReplicaStatus | None:
    """The replica's row, None when there is neither an order nor a process. `before` is the row reported last, `ordered` the
    spec hash of the order and since when it is that."""
    spec, since = ordered or ("", 0.0)
    found = _seen(replica, order, row, failure, probe, before, now)
    return found and found.model_copy(update={"ordered_hash": spec, "ordered_since": since, "lease": lease})


def _seen(
    replica: str,
    order: ReplicaOrder | None,
    row: HostRow | None,
    failure: Failure | None,
    probe: Result | None,
    before: ReplicaStatus | None,
    now: float,
) -> ReplicaStatus | None:
    if row is None:
        return _awaited(replica, order, failure, before, now) if order else None
    state = ReplicaState(row.state)
    error = row.last_error
    healthy, since = row.healthy and state is ReplicaState.STARTED, row.since
    if probe is not None and healthy:
        healthy = not probe.error
        since = max(since, probe.since)
        error = f"health check: {probe.error}" if probe.error else error
    if failure is not None:
        error = str(failure.error)
    return ReplicaStatus(
        replica=replica,
        instance=order.instance if order else row.order.instance,
        spec_hash=row.spec_hash,
        package=_package(row),
        state=state,
        healthy=healthy,
        since=since,
        started_at=row.started_at,
        pid=row.pid,
        port=row.order.port or None,
        restarts=row.restarts,
        last_error=error,
        retry_at=row.retry_at,
        commit=_commit(order, row, before),
    )


def _awaited(
    replica: str,
    order: ReplicaOrder,
    failure: Failure | None,
    before: ReplicaStatus | None,
    now: float,
) -> ReplicaStatus:
    """An order without a process: Pending, or Failed when trying again cannot help."""
    hopeless = failure is not None and isinstance(failure.error, Invalid)
    state = ReplicaState.FAILED if hopeless else ReplicaState.PENDING
    kept = before is not None and before.state is state and before.spec_hash == order.spec_hash
    return ReplicaStatus(
        replica=replica,
        instance=order.instance,
        spec_hash=order.spec_hash,
        package=order.spec.package,
        state=state,
        since=before.since if before is not None and kept else now,
        last_error=str(failure.error) if failure else "",
        retry_at=failure.retry_at if failure else None,
        commit=order.commit,
    )


def _package(row: HostRow) -> PackageRef:
    code = row.order.component
    return PackageRef(name=code.name, version=code.version, digest=code.digest)


def _commit(order: ReplicaOrder | None, row: HostRow, before: ReplicaStatus | None) -> str:
    """The commit that brought the spec which runs; while another one is ordered, the old one's."""
    if order is not None and order.spec_hash == row.spec_hash:
        return order.commit
    return before.commit if before is not None and before.spec_hash == row.spec_hash else ""
