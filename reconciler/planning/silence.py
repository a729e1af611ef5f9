"""What waits for nodes that do not answer, or did not yet."""

from __future__ import annotations

from reconciler.model.desired import InstanceSpec
from reconciler.model.plan import HoldReason
from reconciler.planning.cases import Step, World
from reconciler.planning.explain import listed
from reconciler.planning.homes import names_of


def held_by_unheard(world: World, spec: InstanceSpec, step: Step) -> bool:
    """Also what is lost or fenced where this leader heard of it may have been told to run on a node that did not answer yet."""
    others = world.may_run(*names_of(world, spec, step.change.replica))
    if others:
        step.held(HoldReason.NODE_SILENT, f"{listed(others)} may run it already and did not answer yet", others)
    return bool(others)


def held_by_forgotten(world: World, step: Step) -> bool:
    if world.forgotten:
        hold_forgotten(step, world.forgotten)
    return bool(world.forgotten)


def hold_forgotten(step: Step, nodes: tuple[str, ...]) -> None:
    detail = f"{listed(nodes)} may run it and did not come back since Consul lost its data"
    step.held(HoldReason.NODE_FORGOTTEN, f"{detail}: `tdie apply --confirm-lost` if gone for good", nodes)


def hold_silent(world: World, step: Step, nodes: tuple[str, ...]) -> None:
    detail = world.view(nodes[0]).detail
    step.held(HoldReason.NODE_SILENT, f"{listed(nodes)} does not answer" + (f": {detail}" if detail else ""), nodes)
