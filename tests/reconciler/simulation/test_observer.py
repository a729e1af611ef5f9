"""What the observer holds against a system, and what it does not."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agent.clock import Monotonic
from agent.keeper.protocol import Code, HostOrder, HostRow, Lease
from agent.leases.peers import Ask
from reconciler.simulation import virtual
from reconciler.simulation.network import UNNOTICED, Shut
from reconciler.simulation.observer import Observer
from reconciler.simulation.script import Stage
from reconciler.simulation.world import CLUSTER, World

STARTING = HostRow(
    "web.0",
    "spec",
    "Starting",
    healthy=False,
    since=0.0,
    order=HostOrder(
        "web.0", "web", "a", "spec", "python", Code("web", "1.0", "digest", "/web"), lease=Lease(1, 1, 5, 2)
    ),
)


def test_a_way_that_opens_for_a_moment_counts_as_shut_all_the_time() -> None:
    way = Shut()
    for shut, at in ((True, 10.0), (False, 20.0), (True, 20.0 + UNNOTICED / 2), (False, 40.0)):
        way.turn(shut, Monotonic(at))
        assert way.since == (10.0 if shut else None)
    way.turn(True, Monotonic(40.0 + UNNOTICED))
    assert way.since == 40.0 + UNNOTICED


def test_a_promise_counts_from_when_it_was_asked_for() -> None:
    """The holder counts from there: what comes to pass a moment after is no harm, and a moment before it would be."""

    async def story(start_after: float) -> set[str]:
        world = watched()
        world.add_machine("a")
        observer = world.watcher
        assert isinstance(observer, Observer)
        asked = observer.truth.clock.now()
        await asyncio.sleep(1.0)  # on its way, and on the node's disk
        observer.promised("a", Ask(cluster=CLUSTER, node="a", holder="b", replica="web.0", seconds=30.0), asked)
        await asyncio.sleep(start_after - 1.0)
        observer.row("a", STARTING)
        return {found.promise for found in observer.truth.violations}

    assert "one process of a leased replica" in virtual.run(story(29.5))
    assert "one process of a leased replica" not in virtual.run(story(30.5))


@pytest.mark.parametrize("state", ["Failed", "Stopped"])
def test_a_replica_that_has_ended_is_no_new_one_once_its_node_forgot_who_ordered_it(state: str) -> None:
    """It is ordered there again, and waits for nobody. One that is not there any more would be new."""

    async def story() -> tuple[set[str], set[str]]:
        world = watched()
        observer, stage = world.watcher, Stage(world)
        assert isinstance(observer, Observer)
        for number, line in enumerate(("fleet a", "controller one", "commit web@1.0 on 1", "settle")):
            await stage.do(number, line)
        rows = world.nodes["a"].machine.rows
        rows["web.0"] = replace(rows["web.0"], state=state, healthy=False)
        observer.forgot("a")
        ended = set(observer.truth.known)
        del rows["web.0"]
        observer.forgot("a")
        gone = set(observer.truth.known)
        await world.close()
        return ended, gone

    assert virtual.run(story()) == ({"web.0"}, set())


def test_what_nothing_could_kill_when_its_keeper_died_ends_as_soon_as_something_can() -> None:
    """It is no lease that was lost without a reason."""

    async def story() -> tuple[list[str], bool]:
        world = watched()
        machine, states = world.add_machine("a").machine, list[str]()
        machine.rows["web.0"] = replace(STARTING, state="Started", healthy=True, pid=7)
        machine.stick("web.0")
        machine.lose_keeper()
        states.append(machine.rows["web.0"].state)
        machine.free("web.0")
        states.append(machine.rows["web.0"].state)
        machine.keeper_away = False
        machine.look_at_leases()
        observer = world.watcher
        assert isinstance(observer, Observer)
        return states, any(found.promise == "a lease is lost for a reason" for found in observer.truth.violations)

    assert virtual.run(story()) == (["Stopping", "Stopped"], False)


def test_what_outlives_its_lease_is_seen_whatever_the_hour() -> None:
    """Also where the clock is no round number: a look comes later than what counts as no time at all."""

    async def story(until: float) -> set[str]:
        world = watched()
        machine, observer = world.add_machine("a").machine, world.watcher
        assert isinstance(observer, Observer)
        observer.renewed("a", "session", until)
        machine.rows["web.0"] = replace(STARTING, state="Started", healthy=True, pid=7)
        await asyncio.sleep(until + 1.0)
        return {found.promise for found in observer.truth.violations}

    for until in (1422.4436951127745, 30.0, 30.1):
        assert virtual.run(story(until)) == {"leased processes end in time"}


def watched() -> World:
    """A world that an observer watches."""
    world = World()
    world.watcher = Observer(world.clock, world, CLUSTER, "")
    return world
