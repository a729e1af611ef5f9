"""The next assignment of every node whose assignment changes now; nothing for the others."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from agent.wire import (
    Assignment,
    NodePolicy,
    PackageOrder,
    PackageRef,
    ReplicaOrder,
    content_digest,
    digest_of_content,
    package_text,
    replica_text,
)
from reconciler.model.desired import ClusterSpec
from reconciler.model.plan import NodeTarget
from reconciler.planning.cases import Case, World, packages_of
from reconciler.planning.fleet import forgetful
from reconciler.planning.packages import Wanted

Texts = dict[str, dict[str, tuple[ReplicaOrder, bytes]]]  # node -> replica -> an entry and its canonical JSON
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


def target(
    world: World, node: str, changes: dict[str, ReplicaOrder | None], ahead: Wanted, texts: Texts
) -> NodeTarget | None:
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
    policy = policy_of(world.desired.cluster)
    if (
        not forgetful(view)
        and not changes
        and [key for key, _ in wanted] == _held_packages(held)
        and (held is None or held.policy == policy)
    ):
        return None
    orders = tuple(_package_order(package) for _, package in wanted)
    replicas = tuple(entries[name] for name in sorted(entries))
    spelled = _spelled(texts, node, replicas)
    digest = digest_of_content((package_text(order.package) for order in orders), spelled, policy)
    if digest == (content_digest((), ()) if held is None else held.digest) and not forgetful(view):
        return None
    return NodeTarget(node, orders, replicas, digest, policy)


def policy_of(cluster: ClusterSpec) -> NodePolicy:
    """How nodes keep house: what the Cluster document says of it."""
    return NodePolicy(
        keep_versions=cluster.retain_versions, stop_manual=cluster.sync.prune == "all", leases=cluster.leases
    )


def _spelled(texts: Texts, node: str, replicas: tuple[ReplicaOrder, ...]) -> list[bytes]:
    """The canonical JSON of each entry; entries that were there last time are not spelled again."""
    before, now = texts.get(node, {}), {}
    for order in replicas:
        known = before.get(order.replica)
        now[order.replica] = known if known is not None and known[0] is order else (order, replica_text(order))
    texts[node] = now
    return [text for _, text in now.values()]


@lru_cache(maxsize=4096)
def _package_order(package: PackageRef) -> PackageOrder:
    return PackageOrder(package=package)


def _key(package: PackageRef) -> tuple[str, str, str]:
    return (package.name, package.version, package.digest)


def _held_packages(held: Assignment | None) -> list[tuple[str, str, str]]:
    return [] if held is None else [_key(order.package) for order in held.packages]
