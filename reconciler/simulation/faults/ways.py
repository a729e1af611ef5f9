"""What can go wrong between nodes and everybody else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reconciler.simulation.history import History


async def node_is_cut(history: History) -> None:
    name = history.some_node()
    history.world.cut(name, consul=history.random.random() < 0.6, noticed=history.random.random() < 0.8)
    await history.sometime(0.5, 200.0)
    history.world.heal(name)


async def node_loses_consul(history: History) -> None:
    name = history.some_node()
    history.world.cut_consul(name, its_own=history.random.random() < 0.5)
    await history.sometime(0.5, 90.0)
    history.world.heal(name)


async def answers_of_consul_to_a_node_get_lost(history: History) -> None:
    """What it asks is done, and it does not know."""
    name = history.some_node()
    history.world.deafen(name, True)
    await history.sometime(0.5, 90.0)
    history.world.deafen(name, False)


async def node_returns_after_its_work_moved(history: History) -> None:
    """Its processes go on all the time."""
    name = history.some_node()
    history.world.cut(name, consul=True)
    await history.sometime(45.0, 200.0)
    history.world.heal(name)


async def answers_of_a_node_get_lost(history: History) -> None:
    name = history.some_node()
    history.world.mute(name)
    await history.sometime(0.5, 60.0)
    history.world.heal(name)


async def node_is_slow(history: History) -> None:
    """What it is told may arrive after the one who sent it gave up, or was replaced."""
    name = history.some_node()
    history.world.slow(name, history.random.choice([0.5, 5.0, 30.0]))
    await history.sometime(5.0, 120.0)
    history.world.heal(name)


async def link_flaps(history: History) -> None:
    name = history.some_node()
    for _ in range(history.random.randint(3, 12)):
        history.world.cut(name, consul=history.random.random() < 0.5)
        await history.sometime(0.05, 8.0)
        history.world.heal(name)
        await history.sometime(0.05, 8.0)


async def answers_get_lost(history: History) -> None:
    history.world.lossy = history.random.choice([0.1, 0.5, 1.0])
    await history.sometime(1.0, 30.0)
    history.world.lossy = 0.0
