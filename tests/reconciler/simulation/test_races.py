"""A person applies what the plan showed while another commit arrives: every order of their steps (FAULTS row 5)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import permutations

import pytest

from reconciler.execution.approvals import PlanSuperseded, approve
from reconciler.loop import Loop
from reconciler.simulation import virtual
from reconciler.simulation.script import Stage
from reconciler.simulation.world import World
from reconciler.source.sourced import Sourced

# The person reads the plan, decides, and what was decided is written; Git is pushed to, looked at, and the plan follows.
PERSON, SYNC = ("read", "decide", "write"), ("push", "look", "plan")
FIRST, SECOND = "web@1.1.0", "web@1.2.0"


def orders() -> Iterator[tuple[str, ...]]:
    """All ways to put the steps of both one after the other."""
    for order in permutations(PERSON + SYNC):
        if [s for s in order if s in PERSON] == list(PERSON) and [s for s in order if s in SYNC] == list(SYNC):
            yield order


class Race:
    """One replica under sync windows that are closed: nothing changes that a person has not approved."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.loop: Loop = stage.world.controllers["one"].loop
        self.looked = asyncio.Event()
        self.planned = asyncio.Event()
        self.refused = ""
        self._seen: dict[str, str] = {}
        self._ids: frozenset[str] = frozenset()
        self._hold_back()

    def _hold_back(self) -> None:
        """The look at Git and the cycle after it wait for their turn."""
        source, cycle = self.stage.world.source, self.loop.cycle
        look = source.look

        async def held_look(**how):  # type: ignore[no-untyped-def]  # as the source's own
            if _asks_for_second(source.sourced):
                await self.looked.wait()
            return await look(**how)

        async def held_cycle(sourced, *others):  # type: ignore[no-untyped-def]  # as the loop's own
            if _asks_for_second(sourced):
                await self.planned.wait()
            return await cycle(sourced, *others)

        source.look = held_look  # type: ignore[method-assign]  # its turn is part of the test
        self.loop.cycle = held_cycle  # type: ignore[method-assign]  # its turn is part of the test

    async def step(self, name: str) -> None:
        await getattr(self, f"_{name}")()
        await asyncio.sleep(5.0)  # virtual: whatever can follow from it follows

    async def _read(self) -> None:
        plan = self.loop.board.plan
        self._seen = {change.id: change.replica for change in plan.changes} if plan is not None else {}

    async def _decide(self) -> None:
        assert self.loop.board.plan is not None
        try:
            self._ids = approve(self.loop.board.plan, self._seen)
        except PlanSuperseded as error:
            self.refused = str(error)

    async def _write(self) -> None:
        term = self.loop.board.term
        assert term is not None
        if not self.refused:
            with self.loop.changing_record() as record:
                await record.approve(self._ids, "ann", term.session)

    async def _push(self) -> None:
        await self.stage.do(0, "commit web@1.2 on 1")

    async def _look(self) -> None:
        self.looked.set()

    async def _plan(self) -> None:
        self.planned.set()


def _asks_for_second(sourced: Sourced) -> bool:
    return sourced.desired is not None and str(sourced.desired.instances["web"].spec.package) == SECOND


async def raced(order: tuple[str, ...]) -> tuple[str, str, str]:
    """What was refused, what runs once all is quiet, and what the plan then waits for."""
    stage = Stage(World())
    opened = ("fleet a", "controller one", "commit web@1.0 on 1", "settle")
    for line in (*opened, "window 0 1 * * * for 600s", "commit web@1.1 on 1", "wait 2s"):
        await stage.do(0, line)
    race = Race(stage)
    for name in order:
        await race.step(name)
    await asyncio.sleep(30.0)
    shown, plan = await stage.do(0, "show"), await stage.do(0, "plan")
    await stage.world.close()
    return race.refused, shown, plan


@pytest.mark.parametrize("order", list(orders()), ids=" ".join)
def test_only_what_was_seen_is_carried_out_and_who_comes_too_late_hears_of_it(order: tuple[str, ...]) -> None:
    refused, shown, plan = virtual.run(raced(order))
    saw_second = order.index("read") > order.index("plan")
    late = order.index("read") < order.index("plan") < order.index("decide")
    in_time = order.index("write") < order.index("push")  # after an approval Git is looked at first
    assert refused.startswith("PLAN_SUPERSEDED by commit") is late
    if saw_second:  # the newer one was seen and approved
        assert shown == f"a: {SECOND.replace('web@', 'web.0 web@')}"
        assert plan.startswith("No changes.")
        return
    assert (FIRST in shown) is in_time
    assert SECOND not in shown
    assert "held WINDOW_CLOSED" in plan
    assert SECOND in plan
