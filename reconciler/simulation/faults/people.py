"""What people do, in Git and to nodes, and what can go wrong with Git."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.errors import Waiting
from reconciler.model.problems import Problem
from reconciler.source.sourced import Sourced

if TYPE_CHECKING:
    from reconciler.simulation.history import History


async def a_commit_comes(history: History) -> None:
    history.git.change()


async def several_commits_come(history: History) -> None:
    for _ in range(history.random.randint(2, 4)):
        history.git.change()
        await history.sometime(0.01, 5.0)


async def much_leaves_git(history: History) -> None:
    """More than may go without a person's word; somebody says it, or it comes back."""
    history.git.drop_many()
    await history.sometime(5.0, 60.0)
    if history.random.random() < 0.4:
        await history.confirm()
        await history.sometime(5.0, 30.0)
    history.git.bring_back()


async def a_node_joins(history: History) -> None:
    if name := history.add_node():
        await history.sometime(0.0, 20.0)
        history.git.nodes.add(name)
        history.git.publish()


async def a_node_leaves_git(history: History) -> None:
    if len(history.git.nodes) <= 4:
        return
    name = history.random.choice(sorted(history.git.nodes))
    history.git.nodes.discard(name)
    history.git.publish()
    if history.random.random() < 0.5:
        await history.sometime(5.0, 120.0)
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
    await history.sometime(1.0, 100.0)
    if source.sourced.trouble is not None or source.sourced.problems:
        source.push(Sourced(source.sourced.desired, history.git.tip))


async def git_is_slow(history: History) -> None:
    history.world.source.look_takes = history.random.uniform(0.1, 5.0)
    await history.sometime(5.0, 60.0)
    history.world.source.look_takes = 0.0


async def a_version_is_no_good(history: History) -> None:
    """A version never becomes healthy, and is followed by one that does."""
    version = history.git.change(version_only=True)
    machines = history.world.machines.values()
    for machine in machines:
        machine.broken.add(version)
    await history.sometime(5.0, 60.0)
    history.git.change()
    for machine in machines:
        machine.mend(version)


async def a_package_is_missing(history: History) -> None:
    version = history.git.change(version_only=True)
    history.world.missing.add(version)
    await history.sometime(1.0, 60.0)
    history.world.missing.discard(version)


async def a_node_is_drained(history: History) -> None:
    name = history.some_node()
    if await history.wish(name, drain=True):
        await history.sometime(10.0, 200.0)
        await history.wish(name, drain=False)
