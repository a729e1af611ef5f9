"""What must be so when all faults are over and the controllers say that everything is done."""

from __future__ import annotations

from collections import defaultdict

from agent import keys
from agent.consul.embedded.store import Store
from agent.keeper.protocol import HostRow
from agent.steps import is_by_hand
from reconciler.model.desired import DesiredState
from reconciler.simulation.machine import LIVE
from reconciler.simulation.truth import Truth, wanted


def at_rest(truth: Truth, desired: DesiredState, store: Store) -> None:
    """Exactly what is wanted runs, once and as wanted, and Consul shows that."""
    live: dict[str, list[tuple[str, HostRow]]] = defaultdict(list)
    for machine in truth.world.machines.values():
        for row in machine.rows.values() if machine.up else ():
            if row.state in LIVE and not is_by_hand(row.replica):
                live[row.replica].append((machine.name, row))
    names = {replica for spec in desired.instances.values() for replica in wanted(desired, spec)}
    for replica in sorted(names | live.keys()):
        fault = _fault(desired, replica, replica in names, live.get(replica, []))
        if fault:
            truth.broken("what runs is what is wanted", fault)
    _consul(truth, desired, live, store)


def _fault(desired: DesiredState, replica: str, is_wanted: bool, found: list[tuple[str, HostRow]]) -> str:
    if not is_wanted:
        return f"{replica} still runs on {found[0][0]}"
    if len(found) != 1:
        return f"{replica} runs on {[node for node, _ in found] or 'no node'}"
    node, row = found[0]
    spec = desired.instances.get(row.order.instance)
    if spec is None or row.spec_hash != spec.spec_hash or not row.healthy:
        return f"{replica} on {node} is not as wanted"
    if node not in desired.cluster.nodes:
        return f"{replica} runs on {node}, which left Git"
    return ""


def _consul(truth: Truth, desired: DesiredState, live: dict[str, list[tuple[str, HostRow]]], store: Store) -> None:
    cluster = desired.cluster.name
    runs = {keys.replica_service_id(cluster, node, replica) for replica, found in live.items() for node, _ in found}
    own = (keys.AGENT_SERVICE, keys.CONTROLLER_SERVICE)
    shown = {row.id for row in store.services.values() if row.name not in own}
    for service in sorted(shown - runs):
        truth.broken("Consul shows what runs", f"{service} does not run")
    for service in sorted(runs - shown):
        truth.broken("Consul shows what runs", f"{service} is not there")
    for check in store.checks.values():
        if check.service in runs and check.status != "passing":
            truth.broken("Consul shows what runs", f"{check.id} is {check.status}: {check.output}")
