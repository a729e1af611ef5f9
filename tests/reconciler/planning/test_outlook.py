"""How far a plan got does not change where the rest of it goes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.clock import Monotonic
from reconciler.model.desired import ClusterSpec, DesiredState, InstanceSpec, NodeSpec, Placement
from reconciler.model.observed import ObservedState, Record
from reconciler.planning import plan
from reconciler.simulation.executed import empty_fleet, executed

sys.path.append(str(Path(__file__).parents[3]))
from tests.reconciler.planning.stories import instance

NOW = Monotonic(1_000_000.0)
CLUSTER = ClusterSpec("c", {name: NodeSpec(name) for name in "abc"})


def commit(name: str, *instances: InstanceSpec) -> DesiredState:
    return DesiredState(name, CLUSTER, {spec.name: spec for spec in instances})


def settled(desired: DesiredState, observed: ObservedState) -> ObservedState:
    while (made := plan(desired, observed, Record(), NOW)).targets:
        observed = executed(made, observed, NOW)
    return observed


def homes(observed: ObservedState) -> dict[str, list[str]]:
    return {name: sorted(view.replicas) for name, view in observed.nodes.items()}


PACKED = Placement(strategy="pack")
CASES = {
    "what comes later in the order of instances does not attract what comes earlier": (
        commit("1"),
        commit("2", instance("ant", replicas=2, placement=PACKED), instance("cat", per_node=1)),
        "ac",
    ),
    "what leaves does not count before it has left": (
        commit("1", instance("zoo", replicas=1)),
        commit("2", instance("ant", replicas=1), instance("zoo", replicas=0)),
        "a",
    ),
    "what is renamed counts once": (
        commit("1", instance("zoo", replicas=2), instance("bee", replicas=1)),
        commit("2", instance("ant", replicas=3), instance("cat", replicas=2, moved_from="zoo"), instance("bee")),
        "ac",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_part_first_and_then_the_rest(case: str) -> None:
    first, second, part = CASES[case]
    before = settled(first, empty_fleet(first))
    whole = settled(second, before)
    partly = executed(plan(second, before, Record(), NOW), before, NOW, nodes=part)
    assert homes(settled(second, partly)) == homes(whole)


def test_a_replica_keeps_the_situation_in_which_it_was_placed() -> None:
    first = commit("1", instance("ant", "ant@1.0", replicas=2))
    observed = settled(first, empty_fleet(first))
    second = replace(commit("2", instance("ant", "ant@1.1", replicas=3)))
    observed = settled(second, observed)
    placed = {
        entry.replica: entry.placed
        for view in observed.nodes.values()
        for entry in (view.assignment.replicas if view.assignment else ())
    }
    assert placed["ant.0"] == placed["ant.1"] != placed["ant.2"]
