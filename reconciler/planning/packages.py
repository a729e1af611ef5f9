"""Packages are fetched on every node that will change before anything is stopped there."""

from __future__ import annotations

from agent.wire import PackageRef
from reconciler.model.plan import HoldReason, Verdict
from reconciler.planning.cases import Case, Step, World, packages_of
from reconciler.planning.explain import listed

Wanted = dict[str, dict[str, PackageRef]]  # node -> digest -> package to fetch ahead


def fetch_first(world: World, case: Case, ahead: Wanted) -> None:
    """Ask for what the remaining changes of an instance need, and hold them all until each node has it.

    A package that a node was asked to fetch earlier stays asked for, also while another gate is closed again.
    """
    ready: list[Step] = []
    for step in case.steps:
        stops = step.change.verdict in (Verdict.REPLACE, Verdict.RECONFIGURE) or bool(step.drops)
        if step.puts is None or step.change.verdict is Verdict.RENAME or not stops:
            continue
        if step.hold is None:
            ready.append(step)
            _ask(ahead, step, packages_of(step.puts))
        else:
            _ask(ahead, step, _asked_before(world, step))
    lacking: list[str] = []
    failing: list[tuple[str, str]] = []
    for step in ready:
        node = world.view(step.change.node)
        for package in packages_of(step.puts) if step.puts is not None else ():
            if package.digest in node.installed:
                continue
            lacking.append(node.name)
            error = node.package_errors.get(package.digest)
            if error:
                failing.append((node.name, f"{node.name} cannot install {package}: {error}"))
    nodes = tuple(dict.fromkeys(lacking))
    for step in ready if nodes else ():
        if failing:
            mine = next((why for node, why in failing if node == step.change.node), failing[0][1])
            step.held(HoldReason.PACKAGE_FAILED, mine, tuple(dict.fromkeys(node for node, _ in failing)))
        else:
            step.held(
                HoldReason.PACKAGE_FETCHING, f"{step.change.to_package} is being fetched on {listed(nodes)}", nodes
            )


def failing_everywhere(world: World) -> tuple[str, ...]:
    """A sentence for each package of the cluster itself that nodes cannot install: no change of a replica would show it."""
    found = []
    for package in world.desired.cluster.packages:
        why = {
            node: errors[package.digest]
            for node, errors in sorted(world.fleet.failing.items())
            if package.digest in errors and world.fleet.sites[node].listed
        }
        if why:
            first = next(iter(why.values()))
            found.append(f"{listed(tuple(why))} cannot install {package}, which every node should have: {first}")
    return tuple(found)


def _asked_before(world: World, step: Step) -> tuple[PackageRef, ...]:
    assignment = world.view(step.change.node).assignment
    if assignment is None or step.puts is None:
        return ()
    asked = {order.package.digest for order in assignment.packages}
    return tuple(package for package in packages_of(step.puts) if package.digest in asked)


def _ask(ahead: Wanted, step: Step, packages: tuple[PackageRef, ...]) -> None:
    for package in packages:
        ahead.setdefault(step.change.node, {})[package.digest] = package
