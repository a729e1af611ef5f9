"""Everything that can go wrong in a history, each with how often; what a fault breaks, it repairs after a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from agent.errors import Waiting
from reconciler.source.sourced import Sourced

if TYPE_CHECKING:
    from reconciler.simulation.history import History

Fault = Callable[["History"], Coroutine[object, object, None]]


async def _sometime(history: History, low: float, high: float) -> None:
    await asyncio.sleep(history.random.uniform(low, high))


async def agent_crashes(history: History) -> None:
    name = history.some_node()
    if not history.has_agent(name):
        return
    await history.world.crash_agent(name)
    await _sometime(history, 0.0, 60.0)
    if history.is_up(name) and not history.has_agent(name):
        history.world.start_agent(name)


async def machine_dies(history: History) -> None:
    name = history.some_node()
    if not history.is_up(name):
        return
    await history.world.power_off(name)
    await _sometime(history, 5.0, 300.0)
    if not history.is_up(name):
        history.world.power_on(name)


async def node_is_cut(history: History) -> None:
    name = history.some_node()
    history.world.cut(name, consul=history.random.random() < 0.6)
    await _sometime(history, 0.5, 200.0)
    history.world.heal(name)


async def link_flaps(history: History) -> None:
    name = history.some_node()
    for _ in range(history.random.randint(3, 12)):
        history.world.cut(name, consul=history.random.random() < 0.5)
        await _sometime(history, 0.05, 8.0)
        history.world.heal(name)
        await _sometime(history, 0.05, 8.0)


async def controller_crashes(history: History) -> None:
    name = history.some_controller()
    if name not in history.world.controllers:
        return
    await history.world.crash_controller(name)
    await _sometime(history, 0.0, 120.0)
    if name not in history.world.controllers:
        history.world.start_controller(name)


async def controller_is_cut(history: History) -> None:
    """From Consul, from the nodes, or from both: a leader that does not know that it was replaced."""
    name = history.some_controller()
    if name not in history.world.controllers:
        return
    consul = history.random.random() < 0.7
    history.world.cut_controller(name, consul=consul, nodes=not consul or history.random.random() < 0.3)
    await _sometime(history, 0.5, 120.0)
    if name in history.world.controllers:
        history.world.cut_controller(name, consul=False, nodes=False)


async def consul_goes_away(history: History) -> None:
    history.world.consul_away(True)
    await _sometime(history, 0.5, 90.0)
    history.world.consul_away(False)


async def answers_get_lost(history: History) -> None:
    history.world.lossy = history.random.choice([0.1, 0.5, 1.0])
    await _sometime(history, 1.0, 30.0)
    history.world.lossy = 0.0


async def host_dies(history: History) -> None:
    if (found := history.some_host()) is not None:
        machine, replica = found
        machine.kill_host(replica)


async def somebody_stops_a_host(history: History) -> None:
    if (found := history.some_host()) is not None:
        machine, replica = found
        machine.stop_by_hand(replica)


async def a_commit_comes(history: History) -> None:
    history.push()


async def several_commits_come(history: History) -> None:
    for _ in range(history.random.randint(2, 4)):
        history.push()
        await _sometime(history, 0.01, 5.0)


async def git_is_away(history: History) -> None:
    """A look brings trouble: what is in force stays in force."""
    source = history.world.source
    good = source.sourced
    source.push(Sourced(good.desired, good.commit, trouble=Waiting("Git does not answer", code="GIT_UNREACHABLE")))
    await _sometime(history, 1.0, 100.0)
    if source.sourced.trouble is not None:
        source.push(Sourced(source.sourced.desired, source.sourced.commit))


async def git_is_slow(history: History) -> None:
    history.world.source.look_takes = history.random.uniform(0.1, 5.0)
    await _sometime(history, 5.0, 60.0)
    history.world.source.look_takes = 0.0


async def a_version_is_no_good(history: History) -> None:
    """A version never becomes healthy, and is followed by one that does."""
    version = history.push(broken=True)
    await _sometime(history, 5.0, 60.0)
    history.push()
    history.mend(version)


async def a_package_is_missing(history: History) -> None:
    version = history.push(missing=True)
    await _sometime(history, 1.0, 60.0)
    history.world.missing.discard(version)


async def a_node_is_drained(history: History) -> None:
    name = history.some_node()
    if await history.wish(name, drain=True):
        await _sometime(history, 10.0, 200.0)
        await history.wish(name, drain=False)


FAULTS: tuple[tuple[int, Fault], ...] = (
    (4, agent_crashes),
    (3, machine_dies),
    (4, node_is_cut),
    (2, link_flaps),
    (3, controller_crashes),
    (3, controller_is_cut),
    (2, consul_goes_away),
    (3, answers_get_lost),
    (3, host_dies),
    (2, somebody_stops_a_host),
    (5, a_commit_comes),
    (2, several_commits_come),
    (2, git_is_away),
    (1, git_is_slow),
    (2, a_version_is_no_good),
    (2, a_package_is_missing),
    (1, a_node_is_drained),
)
"""How often, and what happens: a fault ends by itself."""
