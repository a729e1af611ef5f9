"""The routes by which people go back to an earlier commit, and see what was in force when."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from agent.clock import Clock
from agent.errors import Waiting
from reconciler import answers
from reconciler.api.routes import must_lead, not_ready
from reconciler.execution.leadership import Term
from reconciler.execution.rollbacks import Way
from reconciler.loop import Loop
from reconciler.model.plan import Plan
from reconciler.planning import plan as make_plan
from reconciler.planning import render
from reconciler.source.sourced import Sourced

Revision = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s\x00-\x1f]+$")]
Commit = Annotated[str, Field(max_length=64)]


class RollbackBody(BaseModel):
    """Who goes back, why, and to which commit; `from` is the one in force that the person saw."""

    model_config = ConfigDict(extra="forbid")
    to: Revision | None = None
    who: Annotated[str, Field(min_length=1, max_length=100)]
    why: Annotated[str, Field(max_length=300)] = ""
    seen: Annotated[Commit | None, Field(alias="from")] = None


def rollback_routes(loop: Loop, clock: Clock) -> APIRouter:
    board = loop.board
    router = APIRouter(prefix="/api/master", tags=["rollback"])

    def now() -> tuple[Term, Sourced]:
        term: Term = must_lead(board)
        if board.source is None:
            raise not_ready(board)
        return term, board.source

    @router.get("/history")
    async def history() -> dict[str, Any]:
        """What was in force since when, by which cause, by whom, and what became of it; the latest first."""
        return answers.history(await loop.history.load())

    @router.get("/rollback")
    async def preview(to: Annotated[Revision | None, Query()] = None) -> dict[str, Any]:
        """What a rollback (to this revision, or to the last good commit) would change; nothing happens."""
        _, sourced = now()
        way = await loop.rollbacks.way(sourced, to)
        found = await asyncio.to_thread(_planned, way)
        return {**_ends(way), "text": render.text(found), "plan": render.document(found)}

    @router.post("/rollback")
    async def roll_back(body: RollbackBody) -> dict[str, Any]:
        """Go back to this revision, or to the last good commit; the one in force is quarantined until a newer one comes."""
        term, sourced = now()
        way = await loop.rollbacks.way(sourced, body.to, body.seen)
        try:
            await loop.rollbacks.go(way, sourced, term.session, who=body.who, why=body.why)
        finally:
            loop.look()
        return _ends(way)

    @router.delete("/rollback")
    async def cancel() -> dict[str, Any]:
        """The tip of the branch is in force again."""
        session = must_lead(board).session
        try:
            back = await loop.rollbacks.cancel(session)
        finally:
            loop.look()
        return {"to": back.to, "quarantined": sorted(back.quarantined)}

    def _planned(way: Way) -> Plan:
        if board.observed is None:
            raise Waiting("the fleet was not seen yet", code="NOT_READY", hint="try again in a moment")
        record = replace(loop.planned_with, rolled_back=True)
        return make_plan(way.to, board.observed, record, clock.now())

    return router


def _ends(way: Way) -> dict[str, Any]:
    return {
        "from": way.left.commit,
        "fromSubject": way.left.subject,
        "to": way.to.commit,
        "toSubject": way.to.subject,
    }
