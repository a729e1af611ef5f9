"""A leased replica goes from one node to another in one plan: who takes it has its order before the other one gives it up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from reconciler.model.plan import HoldReason
from reconciler.planning.cases import Case, Step


def gate(cases: Iterable[Case]) -> None:
    """In one plan no node both takes over and gives up, so that all who take can be told before all who give."""
    taking: set[str] = set()
    giving: set[str] = set()
    for step, giver in _handovers(cases):
        taker = step.change.node
        if giver in taking or taker in giving:
            busy = giver if giver in taking else taker
            step.held(HoldReason.HANDING_OVER, f"{busy} hands over another replica first", (busy,))
        else:
            taking.add(taker)
            giving.add(giver)


def takers(cases: Iterable[Case]) -> Mapping[str, tuple[str, ...]]:
    """For each node that gives something up, the nodes that take it over, in order."""
    found: dict[str, set[str]] = {}
    for step, giver in _handovers(cases):
        found.setdefault(giver, set()).add(step.change.node)
    return {giver: tuple(sorted(nodes)) for giver, nodes in found.items()}


def _handovers(cases: Iterable[Case]) -> Iterator[tuple[Step, str]]:
    """Steps that are carried out now and put at one node what they drop at another, with the latter."""
    for case in cases:
        for step in case.steps:
            if step.hold is None and step.puts is not None:
                yield from ((step, node) for node, _ in step.drops if node != step.change.node)
