"""What a keeper says of itself reaches the report, lasts as long as it does, and degraded limits only matter if asked for."""

from __future__ import annotations

import asyncio

from agent.keeper.protocol import SANDBOX_DEGRADED
from agent.keeper_care import KEEPER_LOOK
from reconciler.simulation import virtual
from reconciler.simulation.world import World


def test_a_problem_is_reported_while_it_lasts() -> None:
    async def story() -> list[list[str]]:
        world = World()
        machine = world.add_machine("a").machine
        machine.problems = {"STUCK_UNKILLABLE": "web.0 pid 7", SANDBOX_DEGRADED: "no cgroup"}
        world.start_agent("a")
        seen: list[list[str]] = []
        for _ in range(2):
            await asyncio.sleep(KEEPER_LOOK + 1)
            agent = world.nodes["a"].agent
            assert agent is not None
            seen.append([problem.code for problem in agent.book.whole().problems])
            machine.problems = {}
        await world.close()
        return seen

    assert virtual.run(story()) == [["STUCK_UNKILLABLE"], []]
