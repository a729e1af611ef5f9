"""How soon a node is missed that says nothing any more while its connections stay open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from agent import keys
from reconciler.model.observed import NodeView, Presence
from reconciler.simulation import virtual
from reconciler.simulation.script import Stage
from reconciler.simulation.world import CLUSTER, World

T = TypeVar("T")

LOST_AFTER = 15.0


def of_one_node(story: Callable[[World, Callable[[], NodeView]], Awaitable[T]]) -> T:
    """What a story brings of one node, `a`, that a controller has heard; it gets a look at what that controller sees of it."""

    async def main() -> T:
        world = World()
        world.add_machine("a")
        world.start_agent("a")
        loop = world.start_controller("one")

        def seen() -> NodeView:
            return loop.fleet.snapshot(["a"], LOST_AFTER)[0].nodes["a"]

        try:
            await world.until(lambda: seen().presence is Presence.ALIVE, 30.0)
            return await story(world, seen)
        finally:
            world.pause_agent("a", False)
            await world.close()

    return virtual.run(main())


def test_an_agent_that_stands_still_is_asked_as_soon_as_consul_misses_it() -> None:
    """Its machine still acknowledges what is sent: the long poll alone would notice after more than a minute."""

    async def story(world: World, seen: Callable[[], NodeView]) -> float:
        world.pause_agent("a", True)
        return await world.until(lambda: seen().presence is Presence.LOST, 200.0)

    assert of_one_node(story) < 15.0 + 10.0 + LOST_AFTER + 2.0  # its beat, our question, and then as always


def test_a_check_that_passes_for_ever_hides_no_loss() -> None:
    """Consul's servers know the machine only by what it registered: nobody turns its check critical, and its session ends."""

    async def story(world: World, seen: Callable[[], NodeView]) -> float:
        world.store.checks[keys.agent_check_id(CLUSTER, "a")].expires = None
        await world.crash_agent("a")
        return await world.until(lambda: seen().presence is Presence.LOST, 200.0)

    assert 15.0 + LOST_AFTER < of_one_node(story) < 2 * 15.0 + LOST_AFTER + 2.0  # its session, and then as always


def test_who_stands_still_is_asked_as_soon_as_its_name_is_free() -> None:
    """Its check passes for ever, and its machine acknowledges what is sent."""

    async def story(world: World, seen: Callable[[], NodeView]) -> float:
        world.store.checks[keys.agent_check_id(CLUSTER, "a")].expires = None
        world.pause_agent("a", True)
        return await world.until(lambda: seen().presence is Presence.LOST, 200.0)

    assert of_one_node(story) < 2 * 15.0 + 10.0 + LOST_AFTER + 2.0  # its session, our question, and then as always


def test_who_answers_that_it_cannot_be_claimed_is_not_lost() -> None:
    """Its agent lost its ledger and has no way to Consul: it follows nobody, and what runs there goes on."""

    async def story(world: World, seen: Callable[[], NodeView]) -> NodeView:
        world.cut_consul("a")
        await world.crash_agent("a")
        world.lose_ledger("a")
        world.start_agent("a")
        await asyncio.sleep(300.0)
        return seen()

    view = of_one_node(story)
    assert view.presence is Presence.JOINING
    assert view.detail.startswith("answers, but cannot be claimed: EPOCH_UNKNOWN")


def test_consul_shows_nothing_of_a_node_before_it_says_that_it_shows_all() -> None:
    """Consul has lost its data, and knows a node again some time before what runs there: that starts nowhere else."""

    async def story() -> str:
        world = World()
        stage = Stage(world)
        for number, line in enumerate(("fleet a b c", "controller one", "commit web@1.0 on 3", "settle")):
            await stage.do(number, line)
        world.servers.vanish(True)
        world.nodes["c"].ledger.full = True  # it cannot be claimed, and it takes time until its name is its own again
        await asyncio.sleep(40.0)
        world.servers.wipe()
        world.servers.vanish(False)
        await asyncio.sleep(20.0)
        shown = await stage.do(0, "show")
        await world.close()
        return shown

    assert virtual.run(story()) == "a: web.0 web@1.0.0\nb: web.1 web@1.0.0\nc: web.2 web@1.0.0"


@pytest.mark.parametrize("who", ["one", "two"])
def test_after_a_restart_of_consul_a_node_that_answers_is_not_missed_for_want_of_a_beat(who: str) -> None:
    """A Consul that starts again shows a check as critical until its node beats (DESIGN §6); so for who led, and who leads now."""
    check = keys.agent_check_id(CLUSTER, "a")

    async def story() -> list[Presence]:
        world = World()
        world.add_machine("a")
        world.start_agent("a")
        world.start_controller("one")

        def presence() -> Presence:
            leader = world.leader()
            return (
                Presence.ABSENT if leader is None else leader.fleet.snapshot(["a"], LOST_AFTER)[0].nodes["a"].presence
            )

        async def missed() -> Presence:
            """What the leader says of the node just after its check turned critical: it has not beaten again."""
            await world.until(lambda: presence() is Presence.ALIVE, 60.0)
            await asyncio.sleep(1.0)  # it has beaten after the outage
            world.store.update_check(check, "critical", "not heard since Consul started")
            await asyncio.sleep(0.1)
            assert world.store.checks[check].status == "critical"
            return presence()

        try:
            await world.until(lambda: presence() is Presence.ALIVE, 60.0)
            loop = world.start_controller(who) if who == "two" else world.controllers["one"].loop
            await asyncio.sleep(5.0)
            world.servers.vanish(True)
            await asyncio.sleep(10.0)
            if who == "two":
                await world.crash_controller("one")
            world.servers.vanish(False)
            await world.until(lambda: world.leader() is loop, 60.0)
            soon = await missed()
            await asyncio.sleep(60.0)
            return [soon, await missed()]
        finally:
            await world.close()

    assert virtual.run(story()) == [Presence.ALIVE, Presence.UNREACHABLE]
