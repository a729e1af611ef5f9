"""No two leaderships of a node have the same epoch, whatever Consul forgets."""

from __future__ import annotations

from reconciler.simulation import virtual
from reconciler.simulation.world import World


def test_an_epoch_that_a_wiped_consul_gives_out_twice_is_raised_before_a_node_is_claimed_with_it() -> None:
    async def story() -> list[int]:
        world = World()
        world.add_machine("a")
        world.start_agent("a")
        agent = world.nodes["a"].agent
        assert agent is not None
        epochs: list[int] = []
        try:
            for controller in ("one", "two", "three"):
                world.start_controller(controller)
                await world.until(lambda: agent.book.whole().epoch > len(epochs), 30.0)
                epochs.append(agent.book.whole().epoch)
                await world.crash_controller(controller)
                world.servers.wipe()
        finally:
            await world.close()
        return epochs

    assert virtual.run(story()) == [1, 2, 3]
