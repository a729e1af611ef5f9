"""Messages of all nodes through the controller: gathered, found wherever they are, and honest about silent nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from agent.api import problems
from agent.clock import SystemClock
from agent.errors import Missing, Waiting
from reconciler.api.messages import message_routes
from reconciler.board import Board
from reconciler.cli.messages import listed
from reconciler.model.observed import NodeView, ObservedState, Presence


def _row(id: str, state: str = "waiting", accepted: str = "2026-01-01T00:00:00.000+00:00") -> dict[str, Any]:
    return {
        "id": id, "topic": "orders", "type": "New", "instance": "shop", "state": state, "attempts": 1,
        "error": "no disk" if state == "dead" else "", "bytes": 1, "accepted": accepted,
    }  # fmt: skip


class Nodes:
    """Buses of two nodes that answer, and one that does not."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str, dict[str, str]]] = []
        self.held = {"http://a": [_row("1"), _row("2", "dead")], "http://b": [_row("3", "dead", "2025"), _row("1")]}

    async def messages(self, api: str, method: str, path: str, params: Mapping[str, str]) -> Any:
        self.asked.append((api, method, path, dict(params)))
        if api == "http://c":
            raise Waiting("c does not answer")
        if not path:
            return {"items": self.held[api]}
        found = [row for row in self.held[api] if row["id"] == path.split("/")[1]]
        if not found:
            raise Missing("not here")
        if method == "GET":
            return {"message": {"id": "1", "content": "x"}, "deliveries": found}
        return {"retried": 1} if method == "POST" else {"dropped": 2}


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


@pytest.fixture
def board() -> Board:
    made = Board("c", SystemClock())
    views = {name: NodeView(name, Presence.ALIVE, api=f"http://{name}") for name in ("a", "b")}
    made.observed = ObservedState(1, views)
    return made


async def _ask(board: Board, nodes: Nodes, method: str, path: str) -> httpx.Response:
    app = FastAPI()
    problems.install(app)
    app.include_router(message_routes(board, nodes))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://c") as client:
        return await client.request(method, f"/api/master/messages{path}")


async def test_all_nodes_together_dead_letters_first(board: Board, nodes: Nodes) -> None:
    doc = (await _ask(board, nodes, "GET", "?state=all&topic=orders")).json()
    assert [(row["id"], row["node"]) for row in doc["items"]] == [("3", "b"), ("2", "a"), ("1", "a"), ("1", "b")]
    assert doc["unreachable"] == []
    assert nodes.asked[0] == (
        "http://a", "GET", "", {"state": "all", "topic": "orders", "instance": "", "limit": "100"},
    )  # fmt: skip
    lines = listed(doc)
    assert lines[0].split() == ["ID", "STATE", "TOPIC", "TYPE", "FOR", "NODE", "TRIES", "SINCE", "ERROR"]
    assert lines[1].split()[:6] == ["3", "dead", "orders", "New", "shop", "b"]
    assert listed({"items": []}) == ["no message waits"]


async def test_one_message_wherever_it_is(board: Board, nodes: Nodes) -> None:
    shown = (await _ask(board, nodes, "GET", "/1")).json()
    assert shown["message"]["content"] == "x"
    assert [row["node"] for row in shown["deliveries"]] == ["a", "b"]
    assert (await _ask(board, nodes, "POST", "/3/retry?instance=shop")).json() == {"retried": 1}
    assert (await _ask(board, nodes, "DELETE", "/1")).json() == {"dropped": 4}
    odd = await _ask(board, nodes, "GET", "/a%3Fb%20c")
    assert (odd.status_code, odd.json()["code"]) == (404, "MESSAGE_UNKNOWN")
    assert nodes.asked[-1][2] == "/a%3Fb%20c"


async def test_a_silent_node_is_named_and_never_empty(board: Board, nodes: Nodes) -> None:
    assert board.observed is not None
    silent = NodeView("c", Presence.ALIVE, api="http://c")
    lost = NodeView("d", Presence.LOST, api="http://d")
    board.observed = ObservedState(1, {**board.observed.nodes, "c": silent, "d": lost})
    doc = (await _ask(board, nodes, "GET", "")).json()
    assert doc["unreachable"] == ["c", "d"]
    unknown = await _ask(board, nodes, "GET", "/9")
    assert (unknown.status_code, unknown.json()["code"]) == (503, "UNREACHABLE")
    assert "c, d did not" in unknown.json()["detail"]
    board.observed = None
    assert (await _ask(board, nodes, "GET", "")).json()["code"] == "NOT_READY"
