"""Crash points: whatever crashes before or after any effect of a transition, it ends as without that.

`python -m tests.sim.crashes` goes through all points of all transitions (`transitions.txt`) in parallel processes;
`python -m tests.sim.crashes NAME` through those of one, and `NAME POINT before|after TROUBLE` plays a single one and says what it
changes. With `--list` the effects of a transition are named.

What "ends as without that" means: the same replicas run with the same spec and are healthy; locks, records, history, packages, what
is held, and Consul's catalog are the same (but for times and epochs); no promise of the observer was broken at any moment; nothing
was started more often or lost its process that did not without the trouble, and no assignment is sent to who has it. Three things
may differ:
- where replicas run that the transition itself starts or moves, if not a controller crashed: who is away for a moment then may be
  given less. What the transition leaves where it is must stay there, with its process; a package that was fetched elsewhere in that
  moment may stay where it is;
- what is leased ends with the keeper that held its deadline, so that it is started once more; it may be moved then;
- when something else happens meanwhile (another commit), only the end counts: it is as if that had happened afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache

import structlog

from agent.keeper.protocol import HostOrder, HostRow
from agent.wire import Assignment
from reconciler.simulation import virtual
from reconciler.simulation.observer import Observer
from reconciler.simulation.world import CLUSTER
from tests.sim.ended import Ended, differences, facts, rows
from tests.sim.points import TROUBLES, WHENS, Point, SteppedWorld
from tests.sim.transitions import Story, Transition, transitions

QUIET = 60.0  # seconds after which a run without trouble has ended
LONGEST = 120.0  # … and within which one with trouble must look like it
STUCK = 10.0  # seconds of a core after which a run is given up
ONCE = "what a node has is not sent to it under another number"
CHUNK = 40  # points that one process plays before it says so


class Eyes(Observer):
    """The observer; it also counts what is started, and tells what keepers do by themselves."""

    def __init__(self, world: SteppedWorld) -> None:
        super().__init__(world.clock, world, CLUSTER, "")
        self._world = world
        self.started: Counter[tuple[str, str]] = Counter()  # replica and spec hash

    def starts(self, node: str, order: HostOrder, before: HostRow | None) -> None:
        super().starts(node, order, before)
        self.started[order.replica, order.spec_hash] += 1

    def sent(self, controller: str, node: str, assignment: Assignment) -> None:
        super().sent(controller, node, assignment)
        held = self.truth.assigned.get(node)
        if held is not None and held.digest == assignment.digest and held.number != assignment.number:
            self.truth.broken(ONCE, f"{node} has {held.number} and is sent {assignment.number}")

    def row(self, node: str, row: HostRow) -> None:
        super().row(node, row)
        self._world.happened(node, f"shows that {row.replica} is {row.state}")


def play(transition: Transition, point: Point | None = None, reference: Ended | None = None) -> Ended:
    """The transition, with trouble at a point or none."""

    async def main() -> Ended:
        return await _Run(transition, point, reference).play()

    return virtual.run(main())


class _Run:
    def __init__(self, transition: Transition, point: Point | None, reference: Ended | None) -> None:
        self._transition, self._point, self._reference = transition, point, reference
        self._world = SteppedWorld(point, self._meanwhile)
        self._eyes = self._world.watcher = Eyes(self._world)
        self._world.pushed = self._eyes.truth.pushed
        self._story = Story(self._world, self._eyes)
        self._pids: set[int] = set()
        self._said: list[str] = []

    async def play(self) -> Ended:
        world, transition = self._world, self._transition
        try:
            await self._do(transition.before)
            self._pids = {row.pid for _, row in rows(world) if row.pid is not None}
            self._eyes.started.clear()
            world.counts = True
            await self._do(transition.during)
            if self._point is None or self._reference is None:
                await asyncio.sleep(QUIET)
            else:
                await self._struck(self._point)
                await self._as(self._reference, self._point)
            return self._ended()
        finally:
            await world.close()

    async def _struck(self, point: Point) -> None:
        """The trouble was, and is over."""
        with suppress(TimeoutError):
            await self._world.until(lambda: self._world.struck, QUIET, 1.0)
        for trouble in self._world.troubles:
            await trouble
        if point.trouble == "meanwhile":
            await self._do(("settle",))

    async def _do(self, lines: tuple[str, ...]) -> None:
        for number, line in enumerate(lines):
            said = await self._story.do(number, line)
            if said.startswith(("not settled", f"'{line}'")):
                self._said.append(f"{line}: {said}")

    async def _meanwhile(self) -> None:
        await self._do(self._transition.meanwhile)

    async def _as(self, reference: Ended, point: Point) -> None:
        """It looks like the reference, or will not."""
        for _ in range(int(LONGEST)):
            ended = self._ended()
            if ended.broken or (ended.struck and not differences(reference, ended, point)):
                return
            await asyncio.sleep(1.0)

    def _ended(self) -> Ended:
        world, violations = self._world, self._eyes.truth.violations
        return Ended(
            Counter(facts(world, self._pids, self._eyes.started)),
            frozenset(row.replica for _, row in rows(world) if row.order.lease is not None),
            (*(str(each) for each in violations if each.promise not in self._story.allows), *self._said),
            tuple(world.effects),
            world.struck,
            self._transition.timed,
        )


@cache
def reference(name: str, *, then_meanwhile: bool = False) -> Ended:
    """How the transition ends without trouble; or with what may happen at any moment of it happening after it."""
    found = transitions()[name]
    during = (*found.during, *found.meanwhile, "settle") if then_meanwhile else found.during
    return play(replace(found, during=during))


def points(name: str) -> Iterator[Point]:
    """All trouble that means something in this transition."""
    found = transitions()[name]
    for effect in reference(name).effects:
        for when in WHENS if effect.foreseen else ("after",):
            for trouble in effect.troubles:
                if (when == "before" and found.meanwhile) if trouble == "meanwhile" else not found.alone:
                    yield Point(effect.number, when, trouble)


def fault(name: str, point: Point) -> str:
    """How the transition with this trouble ends otherwise; empty if it does not."""
    numbered, without = reference(name), reference(name, then_meanwhile=point.trouble == "meanwhile")
    effect = numbered.effects[point.number]
    if point.trouble not in effect.troubles:
        return f"{name} {point} ({effect}): means nothing there"
    signal.signal(signal.SIGVTALRM, _give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, STUCK, 1.0)
    try:
        ended = play(transitions()[name], point, without)
    except Endless as error:
        return f"{name} {point} ({effect}): {error}"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
    if ended.effects[: point.number + 1] != numbered.effects[: point.number + 1]:
        return f"{name} {point} ({effect}): another run"
    if not ended.struck:
        return f"{name} {point} ({effect}): there was no trouble"
    wrong = [*ended.broken, *differences(without, ended, point)]
    return f"{name} {point} ({effect}):" + "".join(f"\n    {each}" for each in wrong) if wrong else ""


class Endless(KeyboardInterrupt):
    """A run does not end; no event loop holds this up."""


def _give_up(*_: object) -> None:
    raise Endless(f"did not end within {STUCK:g} s")


@dataclass(frozen=True, slots=True)
class Done:
    """What became of some points of a transition."""

    name: str
    count: int
    wrong: tuple[str, ...]
    took: float  # seconds of a core


def go_through(name: str, some: tuple[Point, ...]) -> Done:
    """Each of these points."""
    _quiet()
    gc.collect()  # or what is left of the part before would stay for ever
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    began = time.process_time()
    wrong = tuple(found for point in some if (found := fault(name, point)))
    return Done(name, len(some), wrong, time.process_time() - began)


def main() -> int:
    """0 when no trouble changes how anything ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.crashes", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", nargs="?", help="of a transition")
    parser.add_argument("number", nargs="?", type=int)
    parser.add_argument("when", nargs="?", choices=WHENS)
    parser.add_argument("trouble", nargs="?", choices=TROUBLES)
    parser.add_argument("--list", action="store_true", help="name the effects")
    parser.add_argument("--every", type=int, default=1, help="take only every n-th point")
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if asked.list:
        for effect in reference(asked.name).effects:
            sys.stdout.write(f"{effect.number:4} {effect}  ({', '.join(effect.troubles)})\n")
        return 0
    if asked.trouble:
        wrong = fault(asked.name, Point(asked.number, asked.when, asked.trouble))
        sys.stdout.write(f"{wrong or 'ends as without it'}\n")
        return 1 if wrong else 0
    return _all(asked.name, asked.every)


def _all(only: str | None, every: int) -> int:
    began, names = time.monotonic(), [only] if only else list(transitions())
    done: dict[str, list[Done]] = {name: [] for name in names}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        some = {name: found[::every] for name, found in zip(names, pool.map(_points, names), strict=True)}
        chunks = [(name, some[name][at : at + CHUNK]) for name in names for at in range(0, len(some[name]), CHUNK)]
        for finished in as_completed([pool.submit(go_through, *chunk) for chunk in chunks]):
            part = finished.result()
            done[part.name].append(part)
            sys.stdout.write("".join(f"{wrong}\n" for wrong in part.wrong))
            sys.stdout.flush()
    rows = [_sum(name, parts) for name, parts in done.items()]
    sys.stdout.write(f"{'transition':44} {'effects':>8} {'points':>7} {'otherwise':>10} {'seconds':>8}\n")
    for row in rows:
        effects = len(reference(row.name).effects)
        sys.stdout.write(f"{row.name:44} {effects:8} {row.count:7} {len(row.wrong):10} {row.took:8.1f}\n")
    otherwise = sum(len(row.wrong) for row in rows)
    sys.stdout.write(
        f"{len(rows)} transitions, {sum(row.count for row in rows):,} points of trouble, {otherwise} end otherwise; "
        f"{time.monotonic() - began:.0f} s ({sum(row.took for row in rows):.0f} s of a core)\n"
    )
    return 1 if otherwise else 0


def _sum(name: str, parts: list[Done]) -> Done:
    wrong = tuple(each for part in parts for each in part.wrong)
    return Done(name, sum(part.count for part in parts), wrong, sum(part.took for part in parts))


def _points(name: str) -> tuple[Point, ...]:
    _quiet()
    return tuple(points(name))


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


if __name__ == "__main__":
    sys.exit(main())
