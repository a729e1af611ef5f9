"""The next assignment of every node whose assignment changes now; nothing for the others."""

from __future__ import annotations

from collections.abc import Iterable

from agent.wire import Assignment, PackageOrder, PackageRef, ReplicaOrder, content_digest
from reconciler.model.plan import NodeTarget
from reconciler.planning.cases import Case, World, packages_of
from reconciler.planning.packages import Wanted

Edits = dict[str, dict[str, ReplicaOrder | None]]  # node -> replica -> new entry, or None to drop it


def edits(cases: Iterable[Case]) -> Edits:
    """What the steps without a hold, and the silent policy changes, do to entries."""
    found: Edits = {}
    for case in cases:
        for node, order in case.patches:
            found.setdefault(node, {})[order.replica] = order
        for step in case.steps:
            if step.hold is not None:
                continue
            for node, replica in step.drops:
                found.setdefault(node, {})[replica] = None
            if step.puts is not None:
                found.setdefault(step.change.node, {})[step.puts.replica] = step.puts
    return found


def target(world: World, node: str, changes: dict[str, ReplicaOrder | None], ahead: Wanted) -> NodeTarget | None:
    """What a node should have next; None when that is what it was told already, or it cannot be told now."""
    site = world.fleet.sites.get(node)
    view = world.observed.nodes.get(node)
    if site is None or view is None or not site.alive or view.locked_by:
        return None
    held = view.assignment
    entries = {entry.replica: entry for entry in (held.replicas if held is not None else ())}
    for replica, order in changes.items():
        if order is None:
            entries.pop(replica, None)
        else:
            entries[replica] = order
    packages = list(world.desired.cluster.packages) if site.listed else []
    for entry in entries.values():
        packages += packages_of(entry)
    packages += ahead.get(node, {}).values()
    wanted = sorted({_key(package): package for package in packages}.items())
    if not changes and [key for key, _ in wanted] == _held_packages(held):
        return None
    orders = tuple(PackageOrder(package=package) for _, package in wanted)
    replicas = tuple(entries[name] for name in sorted(entries))
    digest = content_digest(orders, replicas)
    if digest == (content_digest((), ()) if held is None else held.digest):
        return None
    return NodeTarget(node, orders, replicas, digest)


def _key(package: PackageRef) -> tuple[str, str, str]:
    return (package.name, package.version, package.digest)


def _held_packages(held: Assignment | None) -> list[tuple[str, str, str]]:
    return [] if held is None else [_key(order.package) for order in held.packages]
