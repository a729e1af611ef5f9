"""What can go wrong with Consul, its locks, and who holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.simulation import consul as troubles
from reconciler.simulation.faults.people import a_node_joins

if TYPE_CHECKING:
    from reconciler.simulation.history import History


async def consul_goes_away(history: History) -> None:
    if history.random.random() < 0.7:
        history.git.change(version_only=True)  # nobody is certain to lead any more, and may go on with it
        await history.sometime(0.5, 6.0)
    history.world.servers.vanish(True)
    await history.sometime(0.5, 90.0)
    history.world.servers.vanish(False)


async def consul_stops(history: History) -> None:
    """All its servers at once, for long; sometimes nodes are cut off or die meanwhile."""
    history.world.servers.stop(True)
    await history.sometime(20.0, 400.0)
    history.world.servers.stop(False)


async def a_holder_is_alone(history: History) -> None:
    """Only other agents reach it, and its work is placed elsewhere; then nobody reaches it, or nobody another one."""
    name = history.some_node()
    history.world.cut(name, consul=True)
    history.world.nodes[name].near = True
    if history.random.random() < 0.3:
        await history.sometime(1.0, 20.0)
        await a_node_joins(history)
    await history.sometime(20.0, 300.0)
    other = history.random.choice([name, history.some_node()])
    history.world.cut(other, consul=True)
    await history.sometime(10.0, 200.0)
    history.world.heal(other)
    history.world.heal(name)


async def a_holder_moves_while_alone(history: History) -> None:
    """It has no way to Consul, and the others are asked to run what it runs."""
    name = history.some_node()
    history.world.cut_consul(name, its_own=history.random.random() < 0.5)
    await history.sometime(1.0, 60.0)
    slow = history.some_node()
    if history.random.random() < 0.5:
        history.world.slow(slow, 1.5)
    if await history.wish(name, drain=True):
        await history.sometime(60.0, 200.0)
        await history.wish(name, drain=False)
    history.world.heal(slow)
    history.world.heal(name)


async def a_node_joins_while_a_holder_is_alone(history: History) -> None:
    """It cannot write the new node down, and everything is asked to go there."""
    names = sorted(history.world.nodes)
    for name in names[: len(names) // 2]:
        history.world.cut_consul(name, its_own=True)
    await a_node_joins(history)
    await history.sometime(1.0, 30.0)
    for name in names[: len(names) // 2]:
        if not await history.wish(name, drain=True):
            break
    await history.sometime(150.0, 300.0)
    for name in names[: len(names) // 2]:
        await history.wish(name, drain=False)
    for name in names[: len(names) // 2]:
        history.world.heal(name)


async def consul_elects_a_leader(history: History) -> None:
    history.world.servers.vanish(True)
    await history.sometime(0.2, 10.0)
    history.world.servers.elect()
    history.world.servers.vanish(False)


async def consul_is_slow(history: History) -> None:
    history.world.servers.slow(history.random.choice([0.1, 1.0, 3.0]))
    await history.sometime(2.0, 40.0)
    history.world.servers.slow(0.0)


async def a_session_is_destroyed(history: History) -> None:
    """By somebody who looks after other things."""
    if (found := history.some_lease()) is not None:
        history.world.store.destroy_session(found[1])


async def a_lock_is_meddled_with(history: History) -> None:
    """Somebody writes over it, deletes it, or takes it for itself."""
    if (found := history.some_lease()) is None:
        return
    key, _ = found
    history.observer.meddled(key.rpartition("/")[2])
    store, how = history.world.store, history.random.choice(["written", "deleted", "stolen"])
    if how == "written":
        store.put(key, b"mine")
    else:
        store.delete(key)
    if how == "stolen":
        thief = store.create_session("thief", ttl=60.0, node_checks=[])  # ends also when an old snapshot brings it back
        store.acquire(key, b"mine", thief.id)
        await history.sometime(1.0, 90.0)
        store.destroy_session(thief.id)


async def consul_is_wiped(history: History) -> None:
    history.world.servers.vanish(True)
    await history.sometime(0.5, 30.0)
    history.world.servers.wipe()
    history.world.servers.vanish(False)


async def consul_is_restored(history: History) -> None:
    """From a snapshot that is older than what everybody has seen."""
    saved = troubles.snapshot(history.world.store)
    await history.sometime(1.0, 120.0)
    history.world.servers.restore(saved)


async def consul_lags(history: History) -> None:
    history.world.servers.lag(True)
    await history.sometime(0.5, 20.0)
    history.world.servers.lag(False)


async def answers_of_consul_get_lost(history: History) -> None:
    history.world.servers.lose_answers(True)
    await history.sometime(0.5, 20.0)
    history.world.servers.lose_answers(False)
