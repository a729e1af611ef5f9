"""The routes below /api/master/messages: what waits on the buses of all nodes, and what people decide about it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol
from urllib.parse import quote

from fastapi import APIRouter, Query

from agent.errors import Missing, TdieError, Waiting
from reconciler.api.routes import not_ready
from reconciler.board import Board
from reconciler.model.observed import Presence

Instance = Annotated[str, Query(max_length=63)]


class MessageApi(Protocol):
    """What a controller asks of the buses of nodes."""

    async def messages(self, api: str, method: str, path: str, params: Mapping[str, str]) -> Any:
        """The answer at this path (quoted) below /api/node/messages. Raises TdieError."""
        ...


def message_routes(board: Board, nodes: MessageApi) -> APIRouter:
    """All routes of one controller about messages."""
    router = APIRouter(prefix="/api/master/messages", tags=["messages"])

    @router.get("")
    async def listed(
        state: Literal["dead", "waiting", "all"] = "all",
        topic: Annotated[str, Query(max_length=200)] = "",
        instance: Instance = "",
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """Messages that are not done on any node, dead letters first; `unreachable` names nodes that did not answer."""
        params = {"state": state, "topic": topic, "instance": instance, "limit": str(limit)}
        answers = await _ask_all(board, nodes, "GET", "", params)
        rows = [{**row, "node": node} for node, answer in answers.items() if answer for row in answer["items"]]
        rows.sort(key=lambda row: (row["state"] != "dead", row["accepted"]))
        return {"items": rows[:limit], "unreachable": [node for node, answer in answers.items() if answer is None]}

    @router.get("/{message}")
    async def show(message: str) -> dict[str, Any]:
        """One message as it was published, and how it stands on each node."""
        found = await _everywhere(board, nodes, "GET", message, "", {})
        deliveries = [{**row, "node": node} for node, answer in found.items() for row in answer["deliveries"]]
        return {"message": next(iter(found.values()))["message"], "deliveries": deliveries}

    @router.post("/{message}/retry")
    async def retry(message: str, instance: Instance = "") -> dict[str, int]:
        """Its dead letters are tried anew, from the first attempt."""
        found = await _everywhere(board, nodes, "POST", message, "/retry", {"instance": instance})
        return {"retried": sum(answer["retried"] for answer in found.values())}

    @router.delete("/{message}")
    async def drop(message: str, instance: Instance = "") -> dict[str, int]:
        """It is not delivered any more."""
        found = await _everywhere(board, nodes, "DELETE", message, "", {"instance": instance})
        return {"dropped": sum(answer["dropped"] for answer in found.values())}

    return router


async def _everywhere(
    board: Board, nodes: MessageApi, method: str, message: str, path: str, params: Mapping[str, str]
) -> dict[str, Any]:
    """The answers of the nodes that have the message. Missing when none has; Waiting when one could not be asked."""
    answers = await _ask_all(board, nodes, method, f"/{quote(message, safe='')}{path}", params)
    found = {node: answer for node, answer in answers.items() if answer}
    if found:
        return found
    if silent := [node for node, answer in answers.items() if answer is None]:
        raise Waiting(f"no node that answers has message {message!r}; {', '.join(silent)} did not")
    raise Missing(f"no message {message!r} waits anywhere", code="MESSAGE_UNKNOWN")


async def _ask_all(
    board: Board, nodes: MessageApi, method: str, path: str, params: Mapping[str, str]
) -> dict[str, dict[str, Any] | None]:
    """Node → its answer, empty when it has no such message, None when it did not answer."""
    if board.observed is None:
        raise not_ready(board)
    views = sorted(board.observed.nodes.items())

    async def ask(api: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await nodes.messages(api, method, path, params)
        except Missing:
            return {}
        except TdieError:
            return None
        return found

    alive = [(name, view.api) for name, view in views if view.presence is Presence.ALIVE and view.api]
    found = await asyncio.gather(*(ask(api) for _, api in alive))
    silent = {name: None for name, view in views if view.presence is not Presence.ALIVE}
    return {**dict(zip((name for name, _ in alive), found, strict=True)), **silent}
