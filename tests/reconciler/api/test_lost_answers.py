"""Consul does what a person wants, and its answer is lost: the leader goes by what was done, and says to the person that it does
not know."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import httpx
from fastapi import FastAPI

from agent.api import problems
from agent.errors import Waiting
from reconciler.api.backup import backup_routes
from reconciler.api.rollback import rollback_routes
from reconciler.api.routes import routes
from reconciler.api.suspend import suspend_routes
from reconciler.loop import Loop
from reconciler.simulation import virtual
from reconciler.simulation.script import Stage
from reconciler.simulation.world import World
from tests.reconciler.api.test_controller_api import NoPackages, NothingHeld

T = TypeVar("T")
Ask = Callable[..., Awaitable[int]]
PATIENCE = 20.0  # seconds in which a leader knows what was done


class Losing:
    """A way to Consul on which the answers to writes are lost while `lost` says so."""

    def __init__(self, consul: Any) -> None:
        self._consul, self.lost = consul, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._consul, name)

    async def txn(self, ops: Any) -> Any:
        done = await self._consul.txn(ops)
        if self.lost:
            raise Waiting("the answer was lost", code="CONSUL_UNAVAILABLE")
        return done


class LosingWorld(World):
    way: Losing

    def handed(self, who: str, edge: T) -> T:
        if who.startswith("one-") and hasattr(edge, "txn"):
            self.way = Losing(edge)
            return cast(T, self.way)
        return edge


def leads(body: Callable[[Stage, Loop, Ask], Awaitable[None]]) -> None:
    """A story of a leader with two commits, and of somebody who asks its API while no answer of Consul comes through."""

    async def main() -> None:
        world = LosingWorld()
        stage = Stage(world)
        for number, line in enumerate(
            ("fleet a", "controller one", "commit web@1.0 on 1", "settle", "commit web@1.1 on 1", "settle")
        ):
            await stage.do(number, line)
        loop = world.controllers["one"].loop
        app = FastAPI()
        problems.install(app)
        app.include_router(routes(loop, NoPackages(), world.controllers["one"].net, world.clock, "repo main"))
        app.include_router(suspend_routes(loop, NothingHeld()))
        app.include_router(rollback_routes(loop, world.clock))
        app.include_router(backup_routes(loop))

        async def unanswered(method: str, path: str, **more: object) -> int:
            """The status of an answer that came too late to be of use."""
            world.way.lost = True
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://one") as client:
                status = (await client.request(method, f"/api/master{path}", **more)).status_code  # type: ignore[arg-type]  # passed on
            world.way.lost = False
            return status

        try:
            await body(stage, loop, unanswered)
        finally:
            await world.close()

    virtual.run(main())


def test_what_was_suspended_is_and_what_was_resumed_is_not() -> None:
    async def body(stage: Stage, loop: Loop, unanswered: Ask) -> None:
        assert await unanswered("PUT", "/suspend", json={"who": "ann"}) == 503
        await stage.world.until(lambda: bool(loop.board.suspended), PATIENCE)
        assert await unanswered("DELETE", "/suspend") == 503
        await stage.world.until(lambda: not loop.board.suspended, PATIENCE)

    leads(body)


def test_what_was_rolled_back_is_and_what_was_taken_back_is_not() -> None:
    async def body(stage: Stage, loop: Loop, unanswered: Ask) -> None:
        def in_force() -> str:
            return loop.board.plan.commit if loop.board.plan is not None else ""

        tip = in_force()
        assert await unanswered("POST", "/rollback", json={"who": "ann"}) == 503
        await stage.world.until(lambda: in_force() not in ("", tip), PATIENCE)
        assert await unanswered("DELETE", "/rollback") == 503
        await stage.world.until(lambda: in_force() == tip, PATIENCE)

    leads(body)


def test_after_a_restore_whoever_leads_reads_all_of_it_anew() -> None:
    async def body(stage: Stage, loop: Loop, unanswered: Ask) -> None:
        saved = await loop.backup()
        term = loop.board.term
        assert term is not None
        assert await unanswered("POST", "/restore", json=saved) == 503
        assert term.ended.is_set()
        await stage.world.until(lambda: loop.board.term not in (None, term), PATIENCE)

    leads(body)


def test_what_was_approved_is() -> None:
    async def body(stage: Stage, loop: Loop, unanswered: Ask) -> None:
        world = stage.world
        for number, line in enumerate(("self-heal off", "settle", "stop web.0")):
            await stage.do(number, line)
        await world.until(lambda: loop.board.plan is not None and bool(loop.board.plan.holds), PATIENCE)
        plan = loop.board.plan
        assert plan is not None
        seen = [{"id": change.id, "replica": change.replica} for change in plan.changes]
        assert await unanswered("POST", "/approvals", json={"changes": seen, "plan": plan.digest}) == 503
        await world.until(lambda: world.machines["a"].rows["web.0"].state == "Started", PATIENCE)

    leads(body)
