"""What documents say of each other: dangling names, cycles, renames, ports that must collide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

from reconciler.model import where
from reconciler.model.documents import ClusterBody, InstanceBody
from reconciler.source.decode import Path
from reconciler.source.instances import Located

Complaints = Iterator[tuple[Located, Path, str, str]]


def related(body: InstanceBody) -> bool:
    """Whether a document takes part in anything that is checked here."""
    return bool(body.depends_on or body.moved_from or body.ports)


def check(instances: Mapping[str, Located], cluster: ClusterBody | None, broken: frozenset[str]) -> Complaints:
    """Everything wrong between documents. `broken` names Instances whose documents are refused for other reasons."""
    yield from _names(instances, broken)
    yield from _cycles(instances)
    if cluster is not None:
        yield from _ports(instances, cluster)


def _names(instances: Mapping[str, Located], broken: frozenset[str]) -> Complaints:
    moved: dict[str, str] = {}
    for located in instances.values():
        body = located.document.spec
        for index, dependency in enumerate(body.depends_on):
            if dependency.instance not in instances and dependency.instance not in broken:
                text = f"there is no instance '{dependency.instance}'"
                yield located, ("spec", "dependsOn", index, "instance"), "DANGLING", text
        old = body.moved_from
        if old is None:
            continue
        if old in instances:
            still = instances[old].place
            yield located, ("spec", "movedFrom"), "MOVED_FROM", f"instance '{old}' still exists ({still}); remove it"
        elif old in moved:
            text = f"'{old}' was already moved to '{moved[old]}'"
            yield located, ("spec", "movedFrom"), "MOVED_FROM", text
        moved[old] = located.name


def _cycles(instances: Mapping[str, Located]) -> Complaints:
    """One complaint for each cycle, found by taking one away and looking again."""
    graph = {
        name: {d.instance for d in located.document.spec.depends_on if d.instance in instances}
        for name, located in sorted(instances.items())
        if located.document.spec.depends_on
    }
    for _ in range(20):  # more cycles than that are one mistake
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            # graphlib names it against the arrows: each is needed by the next.
            names = [*reversed(error.args[1])][:-1]
            least = names.index(min(names))
            cycle = [*names[least:], *names[:least]]
            located = instances[cycle[0]]
            depends = [d.instance for d in located.document.spec.depends_on]
            step = cycle[1 % len(cycle)]
            text = " → ".join([*cycle, cycle[0]])
            yield located, ("spec", "dependsOn", depends.index(step), "instance"), "CYCLE", text
            graph[cycle[0]] = graph[cycle[0]] - {step}
        else:
            return


def _ports(instances: Mapping[str, Located], cluster: ClusterBody) -> Complaints:
    """Ports that must meet on a node wherever the planner puts replicas; where they only might, it keeps them apart."""
    claims: dict[int, list[tuple[Located, int, frozenset[str]]]] = {}
    nodes = [(node.name, node.labels) for node in cluster.nodes]
    for _, located in sorted(instances.items()):
        body = located.document.spec
        if body.ports and (body.replicas or body.per_node):
            eligible = frozenset(n for n, labels in nodes if where.matches(body.placement.where, labels, n))
            for index, port in enumerate(body.ports):
                claims.setdefault(port, []).append((located, index, eligible))
    for port, claimants in sorted(claims.items()):
        taken: dict[str, Located] = {}
        floating: list[tuple[Located, int, frozenset[str], int]] = []
        for located, index, eligible in claimants:
            body = located.document.spec
            path = ("spec", "ports", index)
            if body.per_node is None:
                floating.append((located, index, eligible, body.replicas or 0))
                continue
            if body.per_node > 1 and eligible:
                text = f"port {port} is fixed, so perNode: {body.per_node} would use it {body.per_node} times on a node"
                yield located, path, "PORT_TWICE", text
            if met := sorted(eligible & taken.keys()):
                other = taken[met[0]]
                text = f"port {port} is also used by '{other.name}' ({other.place}) on node {met[0]}"
                yield located, path, "PORT_TWICE", text
            taken |= dict.fromkeys(eligible, located)
        yield from _crowded(port, taken, floating)


def _crowded(
    port: int, taken: Mapping[str, Located], floating: list[tuple[Located, int, frozenset[str], int]]
) -> Complaints:
    """More replicas than nodes on which the port is free; an empty cluster has no place at all, which the plan says."""
    wanted: dict[frozenset[str], int] = {}
    for located, index, eligible, replicas in floating:
        free = eligible - taken.keys()
        wanted[eligible] = wanted.get(eligible, 0) + replicas
        if eligible and wanted[eligible] > len(free):
            text = f"port {port} is fixed, but {wanted[eligible]} replicas share {len(free)} nodes on which it is free"
            yield located, ("spec", "ports", index), "PORT_TWICE", text
