"""What a leader had given up on may arrive after all."""

from __future__ import annotations

from agent.wire import Assignment, NodePolicy, content_digest
from reconciler.simulation import virtual
from reconciler.simulation.world import CLUSTER, World


def test_an_assignment_that_arrives_late_is_noticed_and_asked_about() -> None:
    async def story() -> int:
        world = World()
        world.add_machine("a")
        world.start_agent("a")
        agent = world.nodes["a"].agent
        assert agent is not None
        world.start_controller("one")
        await world.until(lambda: agent.book.whole().epoch == 1, 30.0)
        late = Assignment(
            cluster=CLUSTER,
            node="a",
            epoch=1,
            generation=7,
            commit="0" * 40,
            packages=(),
            replicas=(),
            policy=NodePolicy(),
            digest=content_digest((), (), NodePolicy()),
        )
        await agent.assign(late)
        fleet = world.controllers["one"].loop.fleet
        try:
            await world.until(lambda: fleet.snapshot(["a"], 60.0)[0].nodes["a"].next_generation == 8, 30.0)
        finally:
            await world.close()
        return fleet.snapshot(["a"], 60.0)[0].nodes["a"].next_generation

    assert virtual.run(story()) == 8
