"""PUBLIC: every Consul key, service name and check id, spelled once."""

from __future__ import annotations

from collections.abc import Iterable

CONTROLLER_SERVICE = "tdie-controller"
AGENT_SERVICE = "tdie-agent"
CLUSTER_META = "tdie-cluster"
NODE_META = "tdie-node"
API_META = "tdie-api"  # URL of an agent's or controller's API
REPLICAS_META = "tdie-replicas"  # of an agent that has shown all its replicas since it registered: "shown"
ROOT = "tdie/"


def prefix(cluster: str) -> str:
    """Everything of one cluster."""
    return f"{ROOT}{cluster}/"


def epoch(cluster: str) -> str:
    """The number of the current leadership; only grows."""
    return prefix(cluster) + "epoch"


def fresh(cluster: str) -> str:
    """There since the epoch began anew, until a leader has waited long enough for nodes that Consul does not know of."""
    return prefix(cluster) + "fresh"


def rewound(cluster: str) -> str:
    """There while Consul is known to have lost data and not every listed node has told what it runs since; JSON with `since`."""
    return prefix(cluster) + "rewound"


def leader(cluster: str) -> str:
    """The lock of the leading controller; its value is JSON with `name`, `api` (URL) and `since`."""
    return prefix(cluster) + "leader"


def node(cluster: str, name: str) -> str:
    """The identity lock of one agent: refuses a second agent of that name."""
    return prefix(cluster) + f"nodes/{name}"


def nodes(cluster: str) -> str:
    return prefix(cluster) + "nodes/"


def lease(cluster: str, replica: str) -> str:
    """The lock that lets one node run a replica. Written only with `acquire` and `release`: a plain write forgets its index."""
    return leases(cluster) + replica


def leases(cluster: str) -> str:
    return prefix(cluster) + "leases/"


def node_lock(cluster: str, name: str) -> str:
    """Held while a node is being changed; the value says who, why, since."""
    return prefix(cluster) + f"locks/nodes/{name}"


def node_locks(cluster: str) -> str:
    return prefix(cluster) + "locks/nodes/"


def record(cluster: str, *parts: str) -> str:
    """What the controllers remember: `commit`, `rollouts/<instance>`, `approvals`, …"""
    return prefix(cluster) + "record/" + "/".join(parts)


def replica_service_id(cluster: str, node: str, replica: str) -> str:
    return f"tdie/{cluster}/{node}/{replica}"


def replicas_by_node(cluster: str, service_ids: Iterable[str]) -> dict[str, set[str]]:
    """The replicas among these service ids, by node."""
    own, found = prefix(cluster), dict[str, set[str]]()
    for each in service_ids:
        node, is_replica, replica = each.removeprefix(own).partition("/")
        if each.startswith(own) and is_replica:
            found.setdefault(node, set()).add(replica)
    return found


def replica_check_id(cluster: str, node: str, replica: str) -> str:
    """The TTL check that carries a replica's own sentence."""
    return replica_service_id(cluster, node, replica) + ":state"


def replica_alias_check_id(cluster: str, node: str, replica: str) -> str:
    """The alias check that follows the node's agent."""
    return replica_service_id(cluster, node, replica) + ":agent"


def agent_service_id(cluster: str, node: str) -> str:
    return f"tdie/{cluster}/{node}"


def agent_check_id(cluster: str, node: str) -> str:
    return agent_service_id(cluster, node) + ":beat"


def controller_service_id(cluster: str, name: str) -> str:
    return f"tdie/{cluster}/controller/{name}"


def controller_check_id(cluster: str, name: str) -> str:
    return controller_service_id(cluster, name) + ":beat"


def bus_tables(cluster: str) -> str:
    """Which instances subscribe to what: one or more parts, written by the leader when Git says something else."""
    return prefix(cluster) + "bus/topics/"


def bus_table(cluster: str, part: int) -> str:
    return bus_tables(cluster) + f"{part:03}"
