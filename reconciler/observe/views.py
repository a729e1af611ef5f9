"""Pure: an agent's reports → NodeView, on the controller's clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from agent.clock import Monotonic
from agent.wire import Assignment, Claimed, LeaseStatus, ReplicaStatus, Report
from reconciler.model.observed import NodeView, Presence, ReplicaView


def replica_view(row: ReplicaStatus, report: Report, now: Monotonic) -> ReplicaView:
    """The row as seen here: its age on the node's boot clock becomes a time on ours."""
    return ReplicaView(
        replica=row.replica,
        instance=row.instance,
        spec_hash=row.spec_hash,
        package=row.package,
        state=row.state,
        healthy=row.healthy,
        since=_here(row.since, report, now),
        restarts=row.restarts,
        pid=row.pid,
        port=row.port,
        last_error=row.last_error,
        started_at=row.started_at,
        commit=row.commit,
        lease=_lease(row.lease, report, now),
        ordered_hash=row.ordered_hash,
        ordered_since=_here(row.ordered_since, report, now),
    )


def _here(moment: float, report: Report, now: Monotonic) -> Monotonic:
    """A moment on the node's boot clock, on ours."""
    return Monotonic(now - max(0.0, report.at - moment))


def _lease(lease: LeaseStatus | None, report: Report, now: Monotonic) -> LeaseStatus | None:
    if lease is None or lease.until is None:
        return lease
    return lease.model_copy(update={"until": now + lease.until - report.at})


def claimed_view(before: NodeView, answer: Claimed, now: Monotonic) -> NodeView:
    """The node after it answered our claim: what it says is in force replaces everything we thought we had sent."""
    report = answer.report
    ran = (before.ran | _well(before)) if answer.assignment is None else frozenset()
    fresh = replace(
        before,
        replicas={},
        assignment=answer.assignment,
        accepted=report.accepted,
        may_run=None,
        last_shown=None,
        ran=ran,
        next_generation=_next(report, answer.assignment),
    )
    return reported_view(fresh, report, now)


def _well(view: NodeView) -> frozenset[str]:
    return frozenset(name for name, row in view.replicas.items() if row.healthy)


def reported_view(before: NodeView, report: Report, now: Monotonic) -> NodeView:
    """The node after a report: `base` 0 brings all rows, otherwise those that changed."""
    rows = {row.replica: replica_view(row, report, now) for row in report.replicas}
    if report.base:
        gone = frozenset(report.removed)
        replicas = {name: view for name, view in before.replicas.items() if name not in gone} | rows
    else:
        replicas = rows
    return replace(
        before,
        accepted=report.accepted,
        replicas=replicas,
        installed=frozenset(p.package.digest for p in report.packages if p.state == "Installed"),
        package_errors={p.package.digest: p.error for p in report.packages if p.state == "Failed"},
        labels=dict(report.labels),
        capacity=report.capacity,
        problems=report.problems,
        by_hand=frozenset(row.replica for row in report.by_hand),
        manual=tuple(_manual(report)),
        version=report.version,
    )


def _manual(report: Report) -> Iterator[str]:
    for row in report.by_hand:
        yield f"process {row.replica} ({row.package}, {row.state}, pid {row.pid})"
    for found in report.packages:
        if found.manual:
            yield f"package {found.package}"


def sent_view(before: NodeView, assignment: Assignment) -> NodeView:
    """The node after we sent it this: what is not reported yet counts as on its way."""
    return replace(before, assignment=assignment, next_generation=assignment.generation + 1)


def unknown(name: str, now: Monotonic) -> NodeView:
    """A node of which nothing is known yet."""
    return NodeView(name=name, presence=Presence.ABSENT, since=now)


def _next(report: Report, held: Assignment | None) -> int:
    if held is None or held.epoch < report.epoch:
        return 1
    return held.generation + 1
