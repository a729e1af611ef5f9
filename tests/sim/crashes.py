"""Crash points: every effect of a reference run is numbered; a crash before or after each of them changes nothing in the end.

`python -m tests.sim.crashes` goes through all of them.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import structlog

from agent.errors import Waiting
from agent.keeper.protocol import HostOrder, HostRow
from agent.wire import Assignment, Claim
from reconciler.simulation import virtual
from reconciler.simulation.script import Stage
from reconciler.simulation.virtual import outside
from reconciler.simulation.world import LooksAway, World

STORY = (
    "fleet a b c", "controller one", "controller two", "commit db@1.0 on 1, lease strict",
    "commit web@1.0 on 3, at most 1 down", "commit job@1.0 per node 1", "settle", "commit web@1.1 on 4, at most 1 down",
    "settle", "commit db@1.0 on 1, lease strict, set x=1", "settle", "commit drop job", "settle", "kill web.0", "settle",
)  # fmt: skip
BACK = 2.0  # seconds after which a service manager has started again what crashed
Victim = Literal["controller", "agent", "keeper"]
When = Literal["before", "after"]


@dataclass(frozen=True, slots=True)
class Point:
    """A crash: of what, before or after which effect."""

    number: int
    when: When
    victim: Victim

    def __str__(self) -> str:
        return f"{self.victim} {self.when} effect {self.number}"


@dataclass(frozen=True, slots=True)
class Effect:
    number: int
    what: str
    victims: tuple[Victim, ...]  # whose crash there means something


class Crasher(LooksAway):
    """Numbers the effects of a run, and crashes somebody at one of them."""

    def __init__(self, stage: Stage, point: Point | None) -> None:
        self._stage, self._point = stage, point
        self.effects: list[Effect] = []
        self.crashes: list[asyncio.Task[None]] = []

    def sent(self, controller: str, node: str, assignment: Assignment) -> None:
        self._effect(f"{controller} sends {assignment.number} to {node}", ("controller", "agent"), controller, node)

    def claimed(self, controller: str, node: str, claim: Claim) -> None:
        self._effect(f"{node} is claimed by {controller}", ("controller", "agent"), controller, node)

    def accepted(self, controller: str, node: str, assignment: Assignment) -> None:
        self._effect(f"{node} accepts {assignment.number}", ("controller", "agent"), controller, node)

    def starts(self, node: str, order: HostOrder, before: HostRow | None) -> None:
        self._effect(f"{node} starts {order.replica}", ("agent", "keeper"), "", node)

    def stops(self, node: str, row: HostRow) -> None:
        self._effect(f"{node} stops {row.replica}", ("agent", "keeper"), "", node)

    def tries(self, node: str, what: str) -> None:
        if what.startswith("install"):
            self._effect(f"{node} {what}", ("agent",), "", node)

    def removes(self, node: str, digest: str) -> None:
        self._effect(f"{node} removes {digest[:8]}", ("agent",), "", node)

    def _effect(self, what: str, victims: tuple[Victim, ...], controller: str, node: str) -> None:
        effect, point = Effect(len(self.effects), what, victims), self._point
        self.effects.append(effect)
        if point is None or point.number != effect.number:
            return
        self.crashes.append(outside(self._crash(point.victim, controller, node), "crash"))
        if point.when == "before" and point.victim == "keeper":
            raise Waiting("the keeper is gone")
        if point.when == "before" and point.victim == ("controller" if "sends" in what else "agent"):
            raise asyncio.CancelledError  # whoever was about to do it is no more; a message that is on its way arrives

    async def _crash(self, victim: Victim, life: str, node: str) -> None:
        world = self._stage.world
        machine = world.nodes[node].machine
        if victim == "keeper":
            machine.lose_keeper()
            await asyncio.sleep(BACK)
            machine.keeper_away = False
        elif victim == "agent":
            await world.crash_agent(node)
            await asyncio.sleep(BACK)
            world.start_agent(node)
        else:
            name = life.rpartition("-")[0]
            await world.crash_controller(name)
            await asyncio.sleep(BACK)
            world.start_controller(name)


@dataclass(frozen=True, slots=True)
class Ended:
    """What runs in the end, and what was done until then."""

    runs: tuple[str, ...]  # whatever the nodes: who was away for a moment at the start may be given less
    moved: tuple[str, ...]  # replicas that do not run any more where they ran after the first commits
    effects: tuple[Effect, ...]
    crashed: bool
    said: str  # by `settle`, if something did not come to rest


def play(point: Point | None = None) -> Ended:
    """The reference run, with one crash or none."""
    return virtual.run(_play(point))


async def _play(point: Point | None) -> Ended:
    stage = Stage(World())
    crasher = stage.world.watcher = Crasher(stage, point)
    said, first = "", dict[str, str]()
    try:
        for number, text in enumerate(STORY):
            said = await stage.do(number, text)
            if said:  # it did not come to rest
                break
            first = first or (_homes(stage.world) if text == "settle" else first)
        for crash in crasher.crashes:
            await crash
        said = said or await stage.do(len(STORY), "settle")
        await asyncio.sleep(5.0)
        runs, last = tuple(sorted(_running(stage.world))), _homes(stage.world)
    finally:
        await stage.world.close()
    moved = tuple(replica for replica, node in sorted(first.items()) if last.get(replica, node) != node)
    return Ended(runs, moved, tuple(crasher.effects), bool(crasher.crashes), said)


def _running(world: World) -> Iterator[str]:
    for node in world.nodes.values():
        for row in node.machine.rows.values():
            if row.state != "Stopped":
                yield f"{row.replica} {row.order.component.version} {row.spec_hash[:8]} {row.state}"


def _homes(world: World) -> dict[str, str]:
    return {
        replica: name for name, node in world.nodes.items() for replica, row in node.machine.rows.items() if row.healthy
    }


def points(effects: tuple[Effect, ...]) -> Iterator[Point]:
    """Every crash that means something."""
    for effect in effects:
        for victim in effect.victims:
            yield Point(effect.number, "before", victim)
            yield Point(effect.number, "after", victim)


def fault(point: Point, reference: Ended) -> str:
    """How the run with this crash ends otherwise; empty if it does not."""
    ended = play(point)
    if not ended.crashed:
        return f"{point}: nothing crashed"
    if ended.said or ended.moved or ended.runs != reference.runs:
        lines = [*ended.moved, *sorted(set(ended.runs) ^ set(reference.runs))]
        return f"{point} ({reference.effects[point.number].what}): {ended.said} {lines}"
    return ""


def main() -> int:
    """0 when no crash changes how it ends."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    reference = play()
    todo = list(points(reference.effects))
    wrong = [found for point in todo if (found := fault(point, reference))]
    sys.stdout.write("".join(f"{each}\n" for each in wrong))
    sys.stdout.write(f"{len(reference.effects)} effects, {len(todo)} crashes, {len(wrong)} end otherwise\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
