"""Messages over the node API: those another node hands on, and what people ask and decide about those that wait here."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from agent.bus import people
from agent.bus.bus import Bus
from agent.bus.peers import HandedOnMessages
from agent.bus.values import Delivery
from agent.errors import Invalid, Missing, Waiting

PATIENCE = 5.0  # seconds for the disk

State = Literal["dead", "waiting", "all"]
Instance = Annotated[str, Query(max_length=63)]


def message_routes(bus: Bus, node: str) -> APIRouter:
    """All routes below /api/node/messages of this node."""
    router = APIRouter(prefix="/api/node/messages", tags=["messages"])

    @router.post("")
    async def hand_on(body: HandedOnMessages) -> dict[str, int]:
        """Another node hands these on; answered once they are on disk. Sent again, they count once."""
        await _ready(bus)
        if body.node != node:  # a port may be another agent's after a restart
            raise Invalid(f"this is node {node}, not {body.node}", code="WRONG_NODE")
        written = bus.take_over(body.envelopes())
        try:
            async with asyncio.timeout(PATIENCE):
                await written
        except TimeoutError as error:
            raise Waiting("the disk of this node is slow", code="BUS_WRITE") from error
        return {"accepted": len(body.messages)}

    @router.get("")
    async def listed(
        state: State = "all",
        topic: Annotated[str, Query(max_length=200)] = "",
        instance: Instance = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """Messages that are not done, dead letters first, then the oldest first."""
        await _ready(bus)
        dead = None if state == "all" else state == "dead"
        return {"items": people.listed(bus, dead=dead, topic=topic, instance=instance, limit=limit)}

    @router.get("/{message}")
    async def show(message: str) -> dict[str, Any]:
        """One message as it was published, and how it stands for each of its instances."""
        found = await _named(bus, message, "")
        body = (await bus.bodies(found[:1]))[found[0].seq]
        return {"message": _shown(body), "deliveries": [people.row(d) for d in found]}

    @router.post("/{message}/retry")
    async def retry(message: str, instance: Instance = "") -> dict[str, int]:
        """Its dead letters are tried anew, from the first attempt."""
        return {"retried": await people.retry(bus, await _named(bus, message, instance))}

    @router.delete("/{message}")
    async def drop(message: str, instance: Instance = "") -> dict[str, int]:
        """It is not delivered any more."""
        return {"dropped": await people.drop(bus, await _named(bus, message, instance))}

    return router


def _shown(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:  # a host sent it so; its receivers cannot read it either
        return body.decode(errors="replace")


async def _ready(bus: Bus) -> None:
    if not bus.ready.is_set():
        raise Waiting("the messages of this node have not been read yet", code="NOT_READY")


async def _named(bus: Bus, message: str, instance: str) -> list[Delivery]:
    await _ready(bus)
    found = [d for d in people.named(bus, message) if instance in ("", d.instance)]
    if not found:
        raise Missing(f"message {message!r} is not for {instance!r}", code="MESSAGE_UNKNOWN")
    return found
