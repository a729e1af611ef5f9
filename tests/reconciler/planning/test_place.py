"""The short way to the best node gives what scoring every node gives."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from agent.clock import Monotonic
from agent.wire import Capacity, PackageRef, ReplicaSpec
from reconciler.model.desired import ClusterSpec, DesiredState, InstanceSpec, NodeSpec, Placement
from reconciler.model.observed import Record
from reconciler.planning import plan
from reconciler.planning.capacity import Rooms
from reconciler.planning.fleet import Fleet
from reconciler.planning.outlook import Outlook
from reconciler.planning.place import Openings, Seats
from reconciler.simulation.executed import empty_fleet, executed

NOW = Monotonic(1000.0)


def instance(name: str, replicas: int, placement: Placement) -> InstanceSpec:
    spec = ReplicaSpec(package=PackageRef(name=f"p-{name[0]}", version="1", digest="0" * 64))
    return InstanceSpec(name, spec, spec.hash(), replicas=replicas, placement=placement)


def scored(seats: Seats, avoid: str) -> str:
    """The best node by looking at all of them."""
    seats._begin()
    seats._ready()
    sites, _ = seats.openings.of(seats.instance.placement.where)
    open_nodes = [site.name for site in sites if site.name != avoid and not seats._full(site.name)]
    return min(open_nodes, key=seats._key, default="")


@pytest.mark.parametrize("seed", range(60))
def test_the_best_node_is_the_one_with_the_best_score(seed: int) -> None:
    rng = random.Random(seed)
    nodes = {
        f"n{i}": NodeSpec(f"n{i}", {"zone": rng.choice("ab")}, Capacity(slots=rng.choice([2, 5, 9, None])))
        for i in range(rng.randint(1, 9))
    }
    running = {f"{c}x": instance(f"{c}x", rng.randint(0, 6), Placement()) for c in "abc"}
    desired = DesiredState("c", ClusterSpec("c", nodes), running)
    observed = empty_fleet(desired)
    observed = executed(plan(desired, observed, Record(), NOW), observed, NOW)
    fleet, rooms = Fleet(), Rooms()
    fleet.look(desired.cluster, observed)
    openings, outlook = Openings(fleet), Outlook(fleet, rooms, "now", prune=True)
    for number in range(6):
        placement = Placement(
            where=rng.choice(["", "zone == 'a'"]),
            spread=rng.choice(["", "node", "zone"]),
            strategy=rng.choice(["least-loaded", "least-loaded", "pack", "evenness"]),
            max_per_node=rng.choice([None, 1, 2]),
        )
        seats = Seats(instance(f"z{number}", 4, placement), openings, outlook, Counter(), Counter())
        for _ in range(5):
            avoid = rng.choice(["", "", "n0"])
            wanted = scored(seats, avoid)
            assert seats.take(avoid) == wanted
