"""Pure: what an operator reads about a replica in Consul: one sentence, one status, one service entry."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from agent import keys
from agent.consul.protocol import Check, CheckState, Service
from agent.wire import ReplicaState, ReplicaStatus

REPLICA_TTL = 86_400.0  # written only on change; passed again well within it

_STATUS: dict[ReplicaState, CheckState] = {
    ReplicaState.PENDING: "warning",
    ReplicaState.STARTING: "warning",
    ReplicaState.STOPPING: "warning",
    ReplicaState.STARTED: "critical",  # and not healthy
    ReplicaState.STOPPED: "critical",
    ReplicaState.BACKOFF: "critical",
    ReplicaState.FAILED: "critical",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A replica as Consul should show it."""

    service: Service  # its first check carries the sentence in its notes
    check: str
    status: CheckState
    sentence: str


def status_of(row: ReplicaStatus) -> CheckState:
    return "passing" if row.state is ReplicaState.STARTED and row.healthy else _STATUS[row.state]


def sentence(row: ReplicaStatus, since: datetime) -> str:
    """State since a clock time, package, commit, restarts, last error. Nothing in it changes by itself."""
    state = "Healthy" if row.state is ReplicaState.STARTED and row.healthy else str(row.state.value)
    if row.state is ReplicaState.STARTED and not row.healthy:
        state = "Started but not healthy"
    parts = [f"{state} since {since:%Y-%m-%d %H:%M:%S} UTC", str(row.package)]
    if row.commit:
        parts.append(f"commit {row.commit[:8]}")
    parts.append(f"{row.restarts} restart{'' if row.restarts == 1 else 's'}")
    if row.lease is not None:
        parts.append(str(row.lease))
    if row.last_error:
        parts.append(f"last error: {' '.join(row.last_error.split())[:400]}")
    return ", ".join(parts)


def entry(row: ReplicaStatus, *, cluster: str, node: str, address: str, since: datetime) -> Entry:
    """The service entry of one replica; its alias check follows the node's agent."""
    text, status = sentence(row, since), status_of(row)
    check = keys.replica_check_id(cluster, node, row.replica)
    meta = {
        keys.CLUSTER_META: cluster,
        keys.NODE_META: node,
        "tdie-replica": row.replica,
        "tdie-package": str(row.package),
        "tdie-commit": row.commit[:40],
    }
    service = Service(
        id=keys.replica_service_id(cluster, node, row.replica),
        name=row.instance,
        address=address,
        port=row.port or 0,
        tags=(f"cluster={cluster}",),
        meta=meta,
        checks=(
            Check(id=check, name=f"{row.replica} on {node}", ttl=REPLICA_TTL, status=status, notes=text),
            Check(
                id=keys.replica_alias_check_id(cluster, node, row.replica),
                name=f"agent of {node}",
                alias_service=keys.agent_service_id(cluster, node),
                status="passing",
            ),
        ),
    )
    return Entry(service, check, status, text)
