"""What can go wrong on machines: their agents, keepers, hosts and disks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reconciler.simulation.history import History


async def agent_crashes(history: History) -> None:
    name = history.some_node()
    if not history.has_agent(name):
        return
    await history.world.crash_agent(name)
    await history.sometime(0.0, 60.0)
    _agent_back(history, name)


async def agents_restart_together(history: History) -> None:
    """As after an upgrade of all."""
    names = [name for name in sorted(history.world.nodes) if history.has_agent(name)]
    for name in names:
        await history.world.crash_agent(name)
    await history.sometime(0.0, 5.0)
    for name in names:
        _agent_back(history, name)


async def agent_loses_its_ledger(history: History) -> None:
    name = history.some_node()
    if not history.has_agent(name):
        return
    await history.world.crash_agent(name)
    history.world.lose_ledger(name)
    await history.sometime(0.0, 30.0)
    _agent_back(history, name)


async def agent_is_paused(history: History) -> None:
    name = history.some_node()
    history.world.pause_agent(name, True)
    await history.sometime(0.5, 90.0)
    history.world.pause_agent(name, False)


async def agent_is_away_for_long(history: History) -> None:
    """Its keeper goes on alone, and ends what is leased in time."""
    name = history.some_node()
    if not history.has_agent(name):
        return
    await history.world.crash_agent(name)
    await history.sometime(20.0, 200.0)
    _agent_back(history, name)


async def machine_is_paused(history: History) -> None:
    """Nothing on it runs, and nothing on it knows that."""
    name = history.some_node()
    if history.is_up(name) and not history.world.nodes[name].machine.paused:
        history.world.pause_machine(name, True)
        await history.sometime(0.5, 150.0)
        history.world.pause_machine(name, False)


async def host_cannot_be_killed(history: History) -> None:
    """As in state D: it is there until what it waits for comes back."""
    if (found := history.some_host()) is None:
        return
    machine, replica = found
    machine.stick(replica)
    if history.random.random() < 0.5:
        history.git.change(version_only=True)
    await history.sometime(5.0, 150.0)
    machine.free(replica)


async def machine_dies(history: History) -> None:
    name = history.some_node()
    if not history.is_up(name):
        return
    await history.world.power_off(name)
    await history.sometime(5.0, 300.0)
    if not history.is_up(name):
        history.world.power_on(name)


async def many_machines_die(history: History) -> None:
    """So many at once that nothing may be moved."""
    names = history.random.sample(sorted(history.world.nodes), max(3, len(history.world.nodes) // 2))
    for name in names:
        if history.is_up(name):
            await history.world.power_off(name)
    await history.sometime(20.0, 120.0)
    history.git.change(version_only=True)  # of which nothing may be taken away while so much is missed
    await history.sometime(5.0, 60.0)
    for name in names:
        if not history.is_up(name):
            history.world.power_on(name)


async def keeper_crashes(history: History) -> None:
    machine = history.world.nodes[history.some_node()].machine
    machine.lose_keeper()
    await history.sometime(0.1, 30.0)
    machine.keeper_away = False


async def disk_is_full(history: History) -> None:
    node = history.world.nodes[history.some_node()]
    node.machine.disk_full = node.ledger.full = True
    await history.sometime(1.0, 120.0)
    node.machine.disk_full = node.ledger.full = False


async def package_is_damaged(history: History) -> None:
    """Found when the agent starts next."""
    name = history.some_node()
    machine = history.world.nodes[name].machine
    if machine.packages and history.has_agent(name):
        machine.corrupt.add(history.random.choice(sorted(machine.packages)))
        await history.world.crash_agent(name)
        _agent_back(history, name)


async def host_dies(history: History) -> None:
    if (found := history.some_host()) is not None:
        machine, replica = found
        machine.kill_host(replica)


async def host_dies_again_and_again(history: History) -> None:
    if (found := history.some_host()) is None:
        return
    machine, replica = found
    for _ in range(history.random.randint(2, 5)):
        row = machine.rows.get(replica)
        if machine.up and row is not None and row.state == "Started":
            machine.kill_host(replica)
        await history.sometime(0.5, 20.0)


async def somebody_stops_a_host(history: History) -> None:
    if (found := history.some_host()) is not None:
        machine, replica = found
        machine.stop_by_hand(replica)


async def somebody_starts_a_host(history: History) -> None:
    name = history.some_node()
    if history.is_up(name):
        history.world.nodes[name].machine.start_by_hand(f"tdie-manual.{len(history.story)}.0")


def _agent_back(history: History, name: str) -> None:
    if history.is_up(name) and not history.has_agent(name):
        history.world.start_agent(name)
