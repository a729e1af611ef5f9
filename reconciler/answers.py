"""Pure: the board → the JSON documents that the API answers and the CLI shows. Field names are part of the contract."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from agent.clock import Monotonic
from agent.wire import PackageRef
from reconciler.board import Board
from reconciler.model.desired import DesiredState, InstanceSpec
from reconciler.model.history import Entries
from reconciler.model.observed import NodeView, ObservedState, Presence, ReplicaView
from reconciler.model.plan import Change, Hold, Plan
from reconciler.model.where import matches

STATUS_FORMAT = "tdie/status/1"
HISTORY_FORMAT = "tdie/history/1"


def status(board: Board, git: str, now: Monotonic) -> dict[str, Any]:
    """Everything `tdie status` shows, in one document."""
    desired, observed, plan = board.desired, board.observed, board.plan
    return {
        "format": STATUS_FORMAT,
        "cluster": board.cluster,
        "leading": board.term is not None,
        "epoch": board.term.epoch if board.term else None,
        "error": board.error,
        "git": _git(board, git, now),
        "nodes": [node(view, desired, now) for view in observed.nodes.values()] if observed else [],
        "instances": instances(desired, observed, plan, now) if desired and observed and plan else [],
        "changes": changes(plan, plan.changes) if plan else [],
        "plan": plan.digest if plan else "",
        "suspended": sorted(board.suspended.values()),
        "warnings": list(observed.warnings if observed else ()),
        "converged": converged(board),
        "settled": settled(board),
    }


def converged(board: Board) -> bool:
    """Whether the tip of Git is in force, nothing is left to do, and exactly what is wanted runs and is healthy."""
    source = board.source
    if source is None or board.desired is None or source.problems or source.trouble:
        return False
    return source.commit == board.desired.commit and settled(board)


def settled(board: Board) -> bool:
    """Whether all of the commit in force runs and is healthy, and nothing else; it need not be the tip of Git."""
    if not (board.desired and board.observed and board.plan and board.source):
        return False
    if board.plan.changes or board.source.desired is not board.desired:
        return False
    rows = instances(board.desired, board.observed, board.plan)
    return all(row["wanted"] == row["running"] == row["current"] == row["healthy"] for row in rows)


def _git(board: Board, git: str, now: Monotonic) -> dict[str, Any]:
    source = board.source
    desired = source.desired if source else None
    trouble = source.trouble if source else None
    return {
        "source": git,
        "commit": desired.commit if desired else "",
        "subject": desired.subject if desired else "",
        "author": desired.author if desired else "",
        "tip": source.commit if source else "",
        "rollback": {**source.rollback.text()} if source and source.rollback else None,
        "problems": [
            {"code": p.code, "file": p.file, "line": p.line, "column": p.column, "message": p.message}
            for p in (source.problems if source else ())
        ],
        "trouble": str(trouble) if trouble else "",
        "troubleFor": round(now - source.since, 1) if source and trouble and source.since is not None else None,
    }


def history(entries: Entries) -> dict[str, Any]:
    """Everything `tdie history` shows, the latest first."""
    items = [{**asdict(entry), "result": entry.result} for entry in reversed(entries)]
    return {"format": HISTORY_FORMAT, "items": items}


def node(view: NodeView, desired: DesiredState | None, now: Monotonic) -> dict[str, Any]:
    """One node as people see it."""
    rows = view.replicas.values()
    listed = desired is not None and view.name in desired.cluster.nodes
    return {
        "name": view.name,
        "presence": view.presence.value,
        "for": round(now - view.since, 1),
        "detail": view.detail,
        "listed": listed,
        "cordoned": view.wish is not None or bool(listed and desired and desired.cluster.nodes[view.name].cordoned),
        "draining": view.wish is not None and view.wish.drain,
        "wish": str(view.wish) if view.wish else "",
        "lockedBy": view.locked_by,
        "replicas": len(view.replicas),
        "healthy": sum(row.healthy for row in rows),
        "labels": dict(view.labels),
        "api": view.api,
        "version": view.version,
        "assignment": f"{view.assignment.epoch}.{view.assignment.generation}" if view.assignment else "",
        "problems": [{"code": p.code, "detail": p.detail} for p in view.problems],
        "manual": list(view.manual),
    }


def instances(
    desired: DesiredState, observed: ObservedState, plan: Plan, now: Monotonic | None = None
) -> list[dict[str, Any]]:
    """One row per instance, wanted or still running, in name order."""
    running: dict[str, list[tuple[NodeView, ReplicaView]]] = defaultdict(list)
    for view in observed.nodes.values():
        for row in view.replicas.values():
            running[row.instance].append((view, row))
    holds: dict[str, list[Hold]] = defaultdict(list)
    for hold in plan.holds:
        holds[hold.instance].append(hold)
    pending: dict[str, int] = defaultdict(int)
    for one in plan.changes:
        pending[one.instance] += 1
    names = sorted(desired.instances.keys() | running.keys())
    return [
        _instance(
            name,
            desired.instances.get(name),
            wanted(name, desired, observed),
            running[name],
            holds[name],
            pending[name],
            now,
        )
        for name in names
    ]


def _instance(
    name: str,
    spec: InstanceSpec | None,
    asked: int,
    rows: list[tuple[NodeView, ReplicaView]],
    holds: list[Hold],
    changes: int,
    now: Monotonic | None,
) -> dict[str, Any]:
    alive = [row for view, row in rows if view.presence is Presence.ALIVE]
    current = [row for row in alive if spec is not None and row.spec_hash == spec.spec_hash]
    return {
        "name": name,
        "package": str(spec.spec.package) if spec else (str(rows[0][1].package) if rows else ""),
        "wanted": asked,
        "running": len(alive),
        "current": len(current),
        "healthy": sum(row.healthy for row in alive),
        "restarts": sum(row.restarts for row in alive),
        "changes": changes,
        "holds": sorted({f"{hold.reason.value}: {hold.detail}" for hold in holds}),
        "lastError": next((row.last_error for row in alive if row.last_error and not row.healthy), ""),
        "replicas": [replica(view, row, now) for view, row in sorted(rows, key=lambda pair: pair[1].replica)],
    }


def wanted(name: str, desired: DesiredState, observed: ObservedState) -> int:
    """How many replicas should run; `perNode` counts the listed nodes that `where` matches and nobody drains."""
    spec = desired.instances.get(name)
    if spec is None:
        return 0
    if spec.replicas is not None:
        return spec.replicas
    matching = 0
    for node in desired.cluster.nodes.values():
        view = observed.nodes.get(node.name)
        if view is not None and view.wish is not None and view.wish.drain:
            continue
        registered = view.labels if view is not None else {}
        matching += matches(spec.placement.where, {**registered, **node.labels}, node.name)
    return (spec.per_node or 0) * matching


def replica(view: NodeView, row: ReplicaView, now: Monotonic | None = None) -> dict[str, Any]:
    """One replica as people see it; with `now` also how long a wait for its lease may still last."""
    return {
        "name": row.replica,
        "instance": row.instance,
        "node": view.name,
        "state": row.state.value,
        "healthy": row.healthy,
        "package": str(row.package),
        "pid": row.pid,
        "port": row.port,
        "restarts": row.restarts,
        "startedAt": row.started_at,
        "lastError": row.last_error,
        "lease": _lease(row, now),
        "commit": row.commit,
        "spec": row.spec_hash[:12],
    }


def _lease(row: ReplicaView, now: Monotonic | None) -> dict[str, Any] | None:
    lease = row.lease
    if lease is None:
        return None
    left = None if now is None or lease.until is None else round(max(0.0, lease.until - now), 1)
    return {
        "state": lease.state,
        "code": lease.code,
        "holder": lease.holder,
        "token": lease.token,
        "for": left,
        "text": f"{lease}" + (f", {left:g} s at most" if left else ""),
    }


def changes(plan: Plan, chosen: Iterable[Change]) -> list[dict[str, Any]]:
    """Changes with the holds on them."""
    holds = {hold.change: hold for hold in plan.holds}
    return [_change(one, holds.get(one.id)) for one in chosen]


def _change(one: Change, hold: Hold | None) -> dict[str, Any]:
    return {
        "id": one.id,
        "verdict": one.verdict.value,
        "replica": one.replica,
        "instance": one.instance,
        "node": one.node,
        "fromNode": one.from_node,
        "cause": one.cause.value,
        "commit": one.commit,
        "reason": one.reason,
        "wave": one.wave,
        "hold": {"reason": hold.reason.value, "detail": hold.detail, "waitingOn": list(hold.waiting_on)}
        if hold
        else None,
    }


def explain(board: Board, subject: str, now: Monotonic) -> dict[str, Any]:
    """Everything known about one instance, replica or node: what is wanted, what is there, why nothing moves."""
    desired, observed, plan = board.desired, board.observed, board.plan
    if not (desired and observed and plan):
        return {}
    found = [
        replica(view, row, now)
        for view in observed.nodes.values()
        for row in view.replicas.values()
        if subject in (row.replica, row.instance, view.name)
    ]
    touching = [c for c in plan.changes if subject in (c.replica, c.instance, c.node, c.from_node)]
    spec = desired.instances.get(subject) or _instance_of(desired, subject)
    view = observed.nodes.get(subject)
    return {
        "subject": subject,
        "wanted": _wanted(spec) if spec else None,
        "node": node(view, desired, view.since) if view else None,
        "replicas": found,
        "changes": changes(plan, touching),
        "known": bool(spec or view or found or touching),
    }


def _instance_of(desired: DesiredState, subject: str) -> InstanceSpec | None:
    name, dot, _ = subject.partition(".")
    return desired.instances.get(name) if dot else None


def _wanted(spec: InstanceSpec) -> Mapping[str, Any]:
    count = {"replicas": spec.replicas} if spec.replicas is not None else {"perNode": spec.per_node}
    return {
        "instance": spec.name,
        "written": str(spec.place),
        "package": str(spec.spec.package),
        "publisher": str(spec.spec.publisher.package) if spec.spec.publisher else "",
        "settings": sorted(spec.spec.settings),  # names only: values may be secret
        "where": spec.placement.where,
        "strategy": spec.placement.strategy,
        "dependsOn": [d.instance for d in spec.depends_on],
        "wave": spec.wave,
        "suspended": spec.suspend,
        "lease": spec.policy.lease,
        "spec": spec.spec_hash[:12],
        **count,
    }


def packages(desired: DesiredState | None, observed: ObservedState | None) -> list[dict[str, Any]]:
    """Packages of the commit in force: by whom they are used, and how many nodes have them."""
    if desired is None:
        return []
    users: dict[PackageRef, set[str]] = {ref: {"every node"} for ref in desired.cluster.packages}
    for instance in desired.instances.values():
        users.setdefault(instance.spec.package, set()).add(instance.name)
        if instance.spec.publisher:
            users.setdefault(instance.spec.publisher.package, set()).add(instance.name)
    views = observed.nodes.values() if observed else ()
    return [
        {
            "name": str(ref),
            "digest": ref.digest,
            "nodes": sum(ref.digest in view.installed for view in views),
            "usedBy": sorted(by),
        }
        for ref, by in sorted(users.items(), key=lambda pair: str(pair[0]))
    ]
