"""Messages over the node API: handed on by another node, and asked for by people."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from agent.api import problems
from agent.api.auth import BearerAuth
from agent.api.messages import message_routes
from agent.api.metrics import metrics_text
from agent.api.node_api import NEEDS
from agent.bus import people
from agent.bus.bus import Bus
from agent.bus.peers import HttpPeers
from agent.bus.routes import Routes
from agent.bus.store import ThreadStore
from agent.bus.table import Table
from agent.bus.values import Envelope, Limits
from agent.callers import Callers
from agent.clock import SystemClock
from agent.errors import Denied, Waiting
from agent.sdk import Message, Subscription
from agent.wire import Report

TOKEN = "only-for-this-test"
TABLE = Table({"shop": (Subscription("orders"),)})


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    store = ThreadStore(tmp_path / "bus.sqlite")
    made = Bus(
        Limits(topic_count=5), store=store, clock=SystemClock(), routes=Routes(), problem=lambda code, text: None
    )
    made.routes.remembered(TABLE)
    await made.open(lambda lane: None)
    yield made
    await store.close()


@pytest.fixture
async def http(bus: Bus) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    problems.install(app)
    app.include_router(message_routes(bus, "b"))
    app.add_middleware(BearerAuth, callers=Callers(lambda: TOKEN), needs=NEEDS)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://b") as made:
        yield made


def _envelope(id: str, instance: str = "shop", **content: object) -> Envelope:
    body = Message(content, type="New", id=id).to_json().encode()
    return Envelope(id, "orders", "New", body, (instance,), 1)


async def test_what_another_node_hands_on_is_on_disk_and_counts_once(bus: Bus, http: httpx.AsyncClient) -> None:
    peers = HttpPeers(http, lambda: TOKEN)
    for _ in range(2):
        await peers.send("http://b", "b", [_envelope("1", text="é"), _envelope("2")])
    assert sorted((d.id, d.instance, d.hops) for d in people.everything(bus)) == [("1", "shop", 1), ("2", "shop", 1)]
    assert bus.counters.duplicates == 2
    body = (await bus.bodies(people.named(bus, "1")))[people.named(bus, "1")[0].seq]
    assert Message.from_json(body).content == {"text": "é"}
    await peers.send("http://b", "b", [_envelope(str(n)) for n in range(10, 13)])
    with pytest.raises(Waiting, match="BUS_FULL"):
        await peers.send("http://b", "b", [_envelope("20")])
    with pytest.raises(Denied, match="UNAUTHORIZED"):
        await HttpPeers(http, lambda: "wrong").send("http://b", "b", [_envelope("3")])


async def test_people_see_retry_and_drop(bus: Bus, http: httpx.AsyncClient) -> None:
    http.headers["Authorization"] = f"Bearer {TOKEN}"
    written = await bus.accept([_envelope("1", n=1), _envelope("2", n=2)])
    await written
    (second,) = people.named(bus, "2")
    bus.lane("shop").remove({second})
    bus.bury(second, "OSError: no disk")
    listed = (await http.get("/api/node/messages")).json()["items"]
    assert [(row["id"], row["state"], row["error"]) for row in listed] == [
        ("2", "dead", "OSError: no disk"),
        ("1", "waiting", ""),
    ]
    dead = (await http.get("/api/node/messages", params={"state": "dead", "instance": "shop"})).json()["items"]
    assert [row["id"] for row in dead] == ["2"]
    assert (await http.get("/api/node/messages", params={"topic": "other"})).json()["items"] == []
    shown = (await http.get("/api/node/messages/2")).json()
    assert (shown["message"]["content"], shown["deliveries"][0]["state"]) == ({"n": 2}, "dead")
    text = metrics_text(
        Report(cluster="c", node="a", agent="x", boot_id="b", index=1, at=0.0, epoch=1), {}, people.figures(bus)
    ).decode()
    assert 'tdie_bus_dead_letters{instance="shop",topic="orders"} 1.0' in text
    assert 'tdie_bus_waiting{instance="shop",topic="orders"} 1.0' in text
    assert "tdie_bus_accepted_total 2.0" in text
    assert (await http.post("/api/node/messages/2/retry")).json() == {"retried": 1}
    assert not bus.dead
    assert (await http.delete("/api/node/messages/1")).json() == {"dropped": 1}
    assert [d.id for d in people.everything(bus)] == ["2"]
    assert await bus.store.do(lambda file: [d.id for d in file.deliveries()[0]]) == ["2"]


def _body(**wrong: object) -> dict[str, Any]:
    return {"node": "b", "messages": [{"id": "1", "topic": "t", "type": "", "instance": "shop", "body": "{}"} | wrong]}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "", {}, 422, "INVALID"),
        ("POST", "", [1], 422, "INVALID"),
        ("POST", "", _body() | {"node": "c"}, 422, "WRONG_NODE"),
        ("POST", "", _body(id=""), 422, "INVALID"),
        ("POST", "", _body(id="a\0b"), 422, "INVALID"),
        ("POST", "", _body(instance="../x"), 422, "INVALID"),
        ("POST", "", _body(hops=-1), 422, "INVALID"),
        ("POST", "", _body(body="x" * ((1 << 20) + 1)), 422, "INVALID"),
        ("GET", "?state=odd", None, 422, "INVALID"),
        ("GET", "?limit=0", None, 422, "INVALID"),
        ("GET", "/none", None, 404, "MESSAGE_UNKNOWN"),
        ("POST", "/none/retry", None, 404, "MESSAGE_UNKNOWN"),
        ("DELETE", "/none", None, 404, "MESSAGE_UNKNOWN"),
        ("DELETE", "/1?instance=other", None, 404, "MESSAGE_UNKNOWN"),
    ],
)
async def test_every_wrong_request_is_a_problem_and_changes_nothing(
    bus: Bus, http: httpx.AsyncClient, method: str, path: str, body: Any, status: int, code: str
) -> None:
    await (await bus.accept([_envelope("1")]))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = await http.request(method, f"/api/node/messages{path}", json=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert [d.id for d in people.everything(bus)] == ["1"]
    unknown = await http.request(method, f"/api/node/messages{path}", json=body)
    assert unknown.status_code == 401


async def test_before_the_file_is_read_nothing_is_said(tmp_path: Path) -> None:
    store = ThreadStore(tmp_path / "bus.sqlite")
    app = FastAPI()
    problems.install(app)
    problem = asyncio.Queue[tuple[str, str]]()
    closed = Bus(
        Limits(), store=store, clock=SystemClock(), routes=Routes(), problem=lambda *said: problem.put_nowait(said)
    )
    app.include_router(message_routes(closed, "b"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://b") as client:
        answer = await client.get("/api/node/messages")
    assert (answer.status_code, answer.json()["code"]) == (503, "NOT_READY")
