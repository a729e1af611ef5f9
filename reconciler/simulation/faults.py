"""Everything that can go wrong in a history, each with how often; what a fault breaks, it repairs after a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from agent.errors import Waiting
from reconciler.model.problems import Problem
from reconciler.simulation import consul as troubles
from reconciler.source.sourced import Sourced

if TYPE_CHECKING:
    from reconciler.simulation.history import History

Fault = Callable[["History"], Coroutine[object, object, None]]


async def _sometime(history: History, low: float, high: float) -> None:
    await asyncio.sleep(history.random.uniform(low, high))


# ------------------------------------------------------------------------------------------- machines and agents


async def agent_crashes(history: History) -> None:
    name = history.some_node()
    if not history.has_agent(name):
        return
    await history.world.crash_agent(name)
    await _sometime(history, 0.0, 60.0)
    _agent_back(history, name)


async def agents_restart_together(history: History) -> None:
    """As after an upgrade of all."""
    names = [name for name in sorted(history.world.nodes) if history.has_agent(name)]
    for name in names:
        await history.world.crash_agent(name)
    await _sometime(history, 0.0, 5.0)
    for name in names:
        _agent_back(history, name)


async def agent_loses_its_ledger(history: History) -> None:
    name = history.some_node()
    if not history.has_agent(name):
        return
    await history.world.crash_agent(name)
    history.world.lose_ledger(name)
    await _sometime(history, 0.0, 30.0)
    _agent_back(history, name)


async def agent_is_paused(history: History) -> None:
    name = history.some_node()
    process = history.world.nodes[name].process
    history.world.pause_agent(name, True)
    await _sometime(history, 0.5, 90.0)
    process.resume()
    history.world.pause_agent(name, False)


async def agent_is_away_for_long(history: History) -> None:
    """Its keeper goes on alone, and ends what is leased in time."""
    name = history.some_node()
    if not history.has_agent(name):
        return
    await history.world.crash_agent(name)
    await _sometime(history, 20.0, 200.0)
    _agent_back(history, name)


async def machine_is_paused(history: History) -> None:
    """Nothing on it runs, and nothing on it knows that."""
    name = history.some_node()
    if history.is_up(name) and not history.world.nodes[name].machine.paused:
        history.world.pause_machine(name, True)
        await _sometime(history, 0.5, 150.0)
        history.world.pause_machine(name, False)


async def host_cannot_be_killed(history: History) -> None:
    """As in state D: it is there until what it waits for comes back."""
    if (found := history.some_host()) is None:
        return
    machine, replica = found
    machine.stick(replica)
    if history.random.random() < 0.5:
        history.git.change(version_only=True)
    await _sometime(history, 5.0, 150.0)
    machine.free(replica)


async def machine_dies(history: History) -> None:
    name = history.some_node()
    if not history.is_up(name):
        return
    await history.world.power_off(name)
    await _sometime(history, 5.0, 300.0)
    if not history.is_up(name):
        history.world.power_on(name)


async def many_machines_die(history: History) -> None:
    """So many at once that nothing may be moved."""
    names = history.random.sample(sorted(history.world.nodes), max(3, len(history.world.nodes) // 2))
    for name in names:
        if history.is_up(name):
            await history.world.power_off(name)
    await _sometime(history, 20.0, 120.0)
    history.git.change(version_only=True)  # of which nothing may be taken away while so much is missed
    await _sometime(history, 5.0, 60.0)
    for name in names:
        if not history.is_up(name):
            history.world.power_on(name)


async def keeper_crashes(history: History) -> None:
    machine = history.world.nodes[history.some_node()].machine
    machine.lose_keeper()
    await _sometime(history, 0.1, 30.0)
    machine.keeper_away = False


async def disk_is_full(history: History) -> None:
    node = history.world.nodes[history.some_node()]
    node.machine.disk_full = node.ledger.full = True
    await _sometime(history, 1.0, 120.0)
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
        await _sometime(history, 0.5, 20.0)


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


# ------------------------------------------------------------------------------------------- ways


async def node_is_cut(history: History) -> None:
    name = history.some_node()
    history.world.cut(name, consul=history.random.random() < 0.6, noticed=history.random.random() < 0.8)
    await _sometime(history, 0.5, 200.0)
    history.world.heal(name)


async def node_loses_consul(history: History) -> None:
    name = history.some_node()
    history.world.cut_consul(name, its_own=history.random.random() < 0.5)
    await _sometime(history, 0.5, 90.0)
    history.world.heal(name)


async def answers_of_consul_to_a_node_get_lost(history: History) -> None:
    """What it asks is done, and it does not know."""
    name = history.some_node()
    history.world.deafen(name, True)
    await _sometime(history, 0.5, 90.0)
    history.world.deafen(name, False)


async def node_returns_after_its_work_moved(history: History) -> None:
    """Its processes go on all the time."""
    name = history.some_node()
    history.world.cut(name, consul=True)
    await _sometime(history, 45.0, 200.0)
    history.world.heal(name)


async def answers_of_a_node_get_lost(history: History) -> None:
    name = history.some_node()
    history.world.mute(name)
    await _sometime(history, 0.5, 60.0)
    history.world.heal(name)


async def node_is_slow(history: History) -> None:
    """What it is told may arrive after the one who sent it gave up, or was replaced."""
    name = history.some_node()
    history.world.slow(name, history.random.choice([0.5, 5.0, 30.0]))
    await _sometime(history, 5.0, 120.0)
    history.world.heal(name)


async def link_flaps(history: History) -> None:
    name = history.some_node()
    for _ in range(history.random.randint(3, 12)):
        history.world.cut(name, consul=history.random.random() < 0.5)
        await _sometime(history, 0.05, 8.0)
        history.world.heal(name)
        await _sometime(history, 0.05, 8.0)


async def answers_get_lost(history: History) -> None:
    history.world.lossy = history.random.choice([0.1, 0.5, 1.0])
    await _sometime(history, 1.0, 30.0)
    history.world.lossy = 0.0


# ------------------------------------------------------------------------------------------- controllers


async def controller_crashes(history: History) -> None:
    name = history.some_controller()
    if name is None:
        return
    await history.world.crash_controller(name, its_consul=history.random.random() < 0.3)
    await _sometime(history, 0.0, history.random.choice([2.0, 120.0]))
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
    await _sometime(history, 0.5, 120.0)
    if name in history.world.controllers:
        history.world.cut_controller(name, consul=False, nodes=False)


async def controller_is_paused(history: History) -> None:
    """In the middle of whatever it does; when it goes on, it knows nothing of the time between."""
    name = history.some_controller()
    if name is None:
        return
    process = history.world.controllers[name].process
    history.git.change()
    await _sometime(history, 0.0, 3.0)
    process.pause()
    await _sometime(history, 0.5, 120.0)
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
    await _sometime(history, 0.0, 3.0)
    if name in history.world.controllers:
        await history.world.crash_controller(name)
    for node in nodes:
        history.world.heal(node)
    await _sometime(history, 5.0, 40.0)
    if name not in history.world.controllers:
        history.world.start_controller(name)


# ------------------------------------------------------------------------------------------- Consul


async def consul_goes_away(history: History) -> None:
    if history.random.random() < 0.7:
        history.git.change(version_only=True)  # nobody is certain to lead any more, and may go on with it
        await _sometime(history, 0.5, 6.0)
    history.world.consul_away(True)
    await _sometime(history, 0.5, 90.0)
    history.world.consul_away(False)


async def consul_stops(history: History) -> None:
    """All its servers at once, for long; sometimes nodes are cut off or die meanwhile."""
    history.world.stop_consul(True)
    await _sometime(history, 20.0, 400.0)
    history.world.stop_consul(False)


async def a_holder_is_alone(history: History) -> None:
    """Only other agents reach it, and its work is placed elsewhere; then nobody reaches it, or nobody another one."""
    name = history.some_node()
    history.world.cut(name, consul=True)
    history.world.nodes[name].near = True
    if history.random.random() < 0.3:
        await _sometime(history, 1.0, 20.0)
        await a_node_joins(history)
    await _sometime(history, 20.0, 300.0)
    other = history.random.choice([name, history.some_node()])
    history.world.cut(other, consul=True)
    await _sometime(history, 10.0, 200.0)
    history.world.heal(other)
    history.world.heal(name)


async def a_holder_moves_while_alone(history: History) -> None:
    """It has no way to Consul, and the others are asked to run what it runs."""
    name = history.some_node()
    history.world.cut_consul(name, its_own=history.random.random() < 0.5)
    await _sometime(history, 1.0, 60.0)
    slow = history.some_node()
    if history.random.random() < 0.5:
        history.world.slow(slow, 1.5)
    if await history.wish(name, drain=True):
        await _sometime(history, 60.0, 200.0)
        await history.wish(name, drain=False)
    history.world.heal(slow)
    history.world.heal(name)


async def a_node_joins_while_a_holder_is_alone(history: History) -> None:
    """It cannot write the new node down, and everything is asked to go there."""
    names = sorted(history.world.nodes)
    for name in names[: len(names) // 2]:
        history.world.cut_consul(name, its_own=True)
    await a_node_joins(history)
    await _sometime(history, 1.0, 30.0)
    for name in names[: len(names) // 2]:
        if not await history.wish(name, drain=True):
            break
    await _sometime(history, 150.0, 300.0)
    for name in names[: len(names) // 2]:
        await history.wish(name, drain=False)
    for name in names[: len(names) // 2]:
        history.world.heal(name)


async def consul_elects_a_leader(history: History) -> None:
    history.world.consul_away(True)
    await _sometime(history, 0.2, 10.0)
    history.world.elect()
    history.world.consul_away(False)


async def consul_is_slow(history: History) -> None:
    history.world.slow_consul(history.random.choice([0.1, 1.0, 3.0]))
    await _sometime(history, 2.0, 40.0)
    history.world.slow_consul(0.0)


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
        await _sometime(history, 1.0, 90.0)
        store.destroy_session(thief.id)


async def consul_is_wiped(history: History) -> None:
    history.world.consul_away(True)
    await _sometime(history, 0.5, 30.0)
    history.world.wipe_consul()
    history.world.consul_away(False)


async def consul_is_restored(history: History) -> None:
    """From a snapshot that is older than what everybody has seen."""
    saved = troubles.snapshot(history.world.store)
    await _sometime(history, 1.0, 120.0)
    history.world.restore_consul(saved)


async def consul_lags(history: History) -> None:
    history.world.lag(True)
    await _sometime(history, 0.5, 20.0)
    history.world.lag(False)


async def answers_of_consul_get_lost(history: History) -> None:
    history.world.lose_answers_of_consul(True)
    await _sometime(history, 0.5, 20.0)
    history.world.lose_answers_of_consul(False)


# ------------------------------------------------------------------------------------------- people and Git


async def a_commit_comes(history: History) -> None:
    history.git.change()


async def several_commits_come(history: History) -> None:
    for _ in range(history.random.randint(2, 4)):
        history.git.change()
        await _sometime(history, 0.01, 5.0)


async def much_leaves_git(history: History) -> None:
    """More than may go without a person's word; somebody says it, or it comes back."""
    history.git.drop_many()
    await _sometime(history, 5.0, 60.0)
    if history.random.random() < 0.4:
        await history.confirm()
        await _sometime(history, 5.0, 30.0)
    history.git.bring_back()


async def a_node_joins(history: History) -> None:
    if name := history.add_node():
        await _sometime(history, 0.0, 20.0)
        history.git.nodes.add(name)
        history.git.publish()


async def a_node_leaves_git(history: History) -> None:
    if len(history.git.nodes) <= 4:
        return
    name = history.random.choice(sorted(history.git.nodes))
    history.git.nodes.discard(name)
    history.git.publish()
    if history.random.random() < 0.5:
        await _sometime(history, 5.0, 120.0)
        history.git.nodes.add(name)
        history.git.publish()


async def git_is_away(history: History) -> None:
    """A look brings trouble: what is in force stays in force."""
    trouble = Waiting("Git does not answer", code="GIT_UNREACHABLE")
    await _git_is_wrong(history, lambda good: Sourced(good.desired, good.commit, trouble=trouble))


async def a_bad_commit_comes(history: History) -> None:
    """It is rejected as a whole, and what is in force stays in force."""
    problem = Problem("ant.yaml", 3, 1, "UNKNOWN_FIELD", "'replica' is no field of an Instance")
    await _git_is_wrong(history, lambda good: Sourced(good.desired, "bad" + good.commit[3:], (problem,)))


async def _git_is_wrong(history: History, wrong: Callable[[Sourced], Sourced]) -> None:
    source = history.world.source
    if source.sourced.trouble is not None or source.sourced.problems:
        return
    source.push(wrong(source.sourced))
    await _sometime(history, 1.0, 100.0)
    if source.sourced.trouble is not None or source.sourced.problems:
        source.push(Sourced(source.sourced.desired, history.git.tip))


async def git_is_slow(history: History) -> None:
    history.world.source.look_takes = history.random.uniform(0.1, 5.0)
    await _sometime(history, 5.0, 60.0)
    history.world.source.look_takes = 0.0


async def a_version_is_no_good(history: History) -> None:
    """A version never becomes healthy, and is followed by one that does."""
    version = history.git.change(version_only=True)
    machines = history.world.machines.values()
    for machine in machines:
        machine.broken.add(version)
    await _sometime(history, 5.0, 60.0)
    history.git.change()
    for machine in machines:
        machine.mend(version)


async def a_package_is_missing(history: History) -> None:
    version = history.git.change(version_only=True)
    history.world.missing.add(version)
    await _sometime(history, 1.0, 60.0)
    history.world.missing.discard(version)


async def a_node_is_drained(history: History) -> None:
    name = history.some_node()
    if await history.wish(name, drain=True):
        await _sometime(history, 10.0, 200.0)
        await history.wish(name, drain=False)


FAULTS: tuple[tuple[int, Fault], ...] = (
    (4, agent_crashes),
    (2, agent_is_away_for_long),
    (1, agents_restart_together),
    (2, agent_loses_its_ledger),
    (3, agent_is_paused),
    (3, machine_dies),
    (3, machine_is_paused),
    (2, host_cannot_be_killed),
    (2, many_machines_die),
    (2, keeper_crashes),
    (2, disk_is_full),
    (1, package_is_damaged),
    (3, host_dies),
    (2, host_dies_again_and_again),
    (2, somebody_stops_a_host),
    (1, somebody_starts_a_host),
    (4, node_is_cut),
    (4, node_loses_consul),
    (3, answers_of_consul_to_a_node_get_lost),
    (3, node_returns_after_its_work_moved),
    (2, answers_of_a_node_get_lost),
    (3, node_is_slow),
    (2, link_flaps),
    (3, answers_get_lost),
    (3, controller_crashes),
    (4, controller_is_cut),
    (4, controller_is_paused),
    (3, leader_is_replaced_while_calls_are_slow),
    (2, consul_goes_away),
    (2, consul_elects_a_leader),
    (1, consul_is_slow),
    (2, a_session_is_destroyed),
    (3, a_lock_is_meddled_with),
    (1, consul_is_wiped),
    (1, consul_is_restored),
    (2, consul_lags),
    (2, answers_of_consul_get_lost),
    (7, a_commit_comes),
    (3, several_commits_come),
    (2, much_leaves_git),
    (2, a_node_joins),
    (2, a_node_leaves_git),
    (2, git_is_away),
    (2, a_bad_commit_comes),
    (1, git_is_slow),
    (2, a_version_is_no_good),
    (2, a_package_is_missing),
    (2, a_node_is_drained),
)
"""How often, and what happens: a fault ends by itself."""

FAILSAFE_FAULTS: tuple[tuple[int, Fault], ...] = (
    (8, consul_stops),
    (10, a_holder_is_alone),
    (10, a_holder_moves_while_alone),
    (4, a_node_joins_while_a_holder_is_alone),
)
"""Also, in histories of failsafe leases."""
