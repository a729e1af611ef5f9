"""What can go wrong with controllers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reconciler.simulation.history import History


async def controller_crashes(history: History) -> None:
    name = history.some_controller()
    if name is None:
        return
    await history.world.crash_controller(name, its_consul=history.random.random() < 0.3)
    await history.sometime(0.0, history.random.choice([2.0, 120.0]))
    if name not in history.world.controllers:
        history.world.start_controller(name)


async def controller_is_cut(history: History) -> None:
    """From Consul, from the nodes, or from both: a leader that does not know that it was replaced."""
    name = history.some_controller()
    if name is None:
        return
    consul = history.random.random() < 0.7
    history.world.cut_controller(name, consul=consul, nodes=not consul or history.random.random() < 0.3)
    if history.random.random() < 0.5:
        history.git.change()  # it has a reason to go on
    await history.sometime(0.5, 120.0)
    if name in history.world.controllers:
        history.world.cut_controller(name, consul=False, nodes=False)


async def controller_is_paused(history: History) -> None:
    """In the middle of whatever it does; when it goes on, it knows nothing of the time between."""
    name = history.some_controller()
    if name is None:
        return
    process = history.world.controllers[name].process
    history.git.change()
    await history.sometime(0.0, 3.0)
    process.pause()
    await history.sometime(0.5, 120.0)
    process.resume()


async def leader_is_replaced_while_calls_are_slow(history: History) -> None:
    """What the old leader has sent arrives after the new one has begun."""
    name = history.some_controller()
    if name is None:
        return
    nodes = history.random.sample(sorted(history.world.nodes), 3)
    for node in nodes:
        history.world.slow(node, 20.0)
    history.git.change()
    await history.sometime(0.0, 3.0)
    if name in history.world.controllers:
        await history.world.crash_controller(name)
    for node in nodes:
        history.world.heal(node)
    await history.sometime(5.0, 40.0)
    if name not in history.world.controllers:
        history.world.start_controller(name)
