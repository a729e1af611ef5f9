"""The routes by which people cordon, drain and lock nodes; all need the operator's token."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from agent.errors import Missing
from reconciler.api.routes import must_lead
from reconciler.execution.node_wishes import NodeWishes
from reconciler.loop import Loop

MONTH = 31 * 86400.0
Text = Annotated[str, Field(max_length=500)]


class Wish(BaseModel):
    """Who wants it, and why."""

    model_config = ConfigDict(extra="forbid")
    who: Annotated[str, Field(min_length=1, max_length=100)]
    why: Text = ""


class Cordon(Wish):
    """`within` is the most seconds that draining may take."""

    drain: bool = False
    within: Annotated[float, Field(ge=0, le=MONTH)] | None = None


def node_wish_routes(loop: Loop, wishes: NodeWishes) -> APIRouter:
    router = APIRouter(prefix="/api/master/nodes/{name}", tags=["nodes"])

    def known(name: str) -> str:
        board = loop.board
        if board.observed is None or name not in board.observed.nodes:
            raise Missing(f"no node is called {name}", code="NODE_UNKNOWN")
        return name

    @router.put("/cordon")
    async def cordon(name: str, wish: Cordon) -> dict[str, Any]:
        """Nothing new is placed on the node; with `drain` everything leaves it."""
        session = must_lead(loop.board).session
        await wishes.cordon(known(name), session, who=wish.who, why=wish.why, drain=wish.drain, within=wish.within)
        return {"node": name, "drain": wish.drain}

    @router.delete("/cordon")
    async def uncordon(name: str) -> dict[str, Any]:
        """The node takes new replicas again."""
        session = must_lead(loop.board).session
        await wishes.uncordon(known(name), session)
        return {"node": name}

    @router.put("/lock")
    async def lock(name: str, wish: Wish) -> dict[str, Any]:
        """Nothing is changed on the node until it is unlocked; what runs there goes on."""
        must_lead(loop.board)
        await wishes.lock(known(name), who=wish.who, why=wish.why)
        return {"node": name}

    @router.delete("/lock")
    async def unlock(name: str) -> dict[str, Any]:
        """The lock of a person is taken away; `heldBy` says whose it was."""
        session = must_lead(loop.board).session
        return {"node": name, "heldBy": await wishes.unlock(known(name), session)}

    return router
