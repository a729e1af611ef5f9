"""The routes by which people stop a cluster from changing anything, let it go on, and accept a rewritten history."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from agent.errors import Missing
from reconciler.api.routes import must_lead, not_ready
from reconciler.loop import Loop

Instance = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9-]*$")]
Who = Annotated[str, Field(min_length=1, max_length=100)]


class Suspend(BaseModel):
    """Who suspends what, and why; without an instance the whole cluster."""

    model_config = ConfigDict(extra="forbid")
    who: Who
    why: Annotated[str, Field(max_length=300)] = ""
    instance: Instance = ""


class Accept(BaseModel):
    """The commit that is held because history was rewritten; at least the first seven digits."""

    model_config = ConfigDict(extra="forbid")
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}$")]


class Accepting(Protocol):
    """Git, as far as a rewritten history is concerned."""

    async def accept(self, revision: str) -> str: ...


def suspend_routes(loop: Loop, git: Accepting) -> APIRouter:
    router = APIRouter(prefix="/api/master", tags=["suspend"])

    @router.put("/suspend")
    async def suspend(body: Suspend) -> dict[str, Any]:
        """Nothing is changed (of this instance) until it is resumed; approved changes may go past that."""
        session = must_lead(loop.board).session
        if loop.board.desired is None or loop.board.observed is None:
            raise not_ready(loop.board)
        running = {row.instance for view in loop.board.observed.nodes.values() for row in view.replicas.values()}
        if body.instance and body.instance not in loop.board.desired.instances.keys() | running:
            raise Missing(f"no instance is called {body.instance}", code="INSTANCE_UNKNOWN")
        with loop.changing_record() as record:
            await record.suspend(body.instance, body.who, body.why, session)
        return {"instance": body.instance}

    @router.delete("/suspend")
    async def resume(instance: Annotated[Instance, Query()] = "") -> dict[str, Any]:
        """Changes are made again; `was` says who had suspended it, and why."""
        session = must_lead(loop.board).session
        with loop.changing_record() as record:
            was = await record.resume(instance, session)
        return {"instance": instance, "was": was}

    @router.post("/accept")
    async def accept(body: Accept) -> dict[str, Any]:
        """The tip of the branch may be in force although history was rewritten."""
        must_lead(loop.board)
        commit = await git.accept(body.commit)
        loop.look()
        return {"commit": commit}

    return router
