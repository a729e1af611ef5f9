"""How soon a node is missed that says nothing any more while its connections stay open."""

from __future__ import annotations

from reconciler.model.observed import Presence
from reconciler.simulation import virtual
from reconciler.simulation.world import World

LOST_AFTER = 15.0


def test_an_agent_that_stands_still_is_asked_as_soon_as_consul_misses_it() -> None:
    """Its machine still acknowledges what is sent: the long poll alone would notice after more than a minute."""

    async def story() -> float:
        world = World()
        world.add_machine("a")
        world.start_agent("a")
        loop = world.start_controller("one")

        def presence() -> Presence:
            return loop.fleet.snapshot(["a"], LOST_AFTER)[0].nodes["a"].presence

        try:
            await world.until(lambda: presence() is Presence.ALIVE, 30.0)
            world.pause_agent("a", True)
            began = world.clock.now()
            await world.until(lambda: presence() is Presence.LOST, 200.0)
            return world.clock.now() - began
        finally:
            world.pause_agent("a", False)
            await world.close()

    assert virtual.run(story()) < 15.0 + 10.0 + LOST_AFTER + 2.0  # its beat, our question, and then as always
