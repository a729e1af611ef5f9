"""The web API: requests become messages; everything else is a problem with a stable code."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from agent.components import folder
from agent.errors import Refused
from agent.host.api import application
from agent.host.host import Host
from agent.keeper.protocol import Code, HostOrder
from agent.sdk import Message, MessagePublisher, SettingsError
from agent.sdk.testing import Running, running

ROUTES = [
    {"path": "/orders/{number}", "method": "PUT", "type": "OrderPut"},
    {"path": "/orders/{number}", "method": "GET", "type": "OrderAsked"},
    {"path": "/orders/all", "method": "GET", "type": "AllAsked"},
    {"path": "/events", "type": "Event"},
]


@asynccontextmanager
async def serving(
    publisher: MessagePublisher | None = None, **settings: Any
) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    given: dict[str, Any] = {} if publisher is None else {"publisher": publisher}
    async with running(folder("web-api"), {"routes": ROUTES, "port": 0, **settings}, name="intake.0", **given) as run:
        port = run.component.port  # type: ignore[attr-defined]  # the package's own class
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            yield run, client


def problem(answer: httpx.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert (told["code"], told["status"], told["type"]) == (code, status, "about:blank")
    assert told["detail"]


async def test_json_comes_in_and_a_message_goes_out() -> None:
    async with serving() as (run, client):
        answer = await client.put("/orders/7?from=shop", json={"lines": [1, 2]}, headers={"X-Correlation-ID": "c-1"})
        assert answer.status_code == 202
        message = await run.message("OrderPut")
        assert answer.json() == {"id": message.id}
        assert answer.headers["x-correlation-id"] == "c-1"
        assert (message.content, message.correlation_id, message.source) == ({"lines": [1, 2]}, "c-1", "intake.0")
        assert message.properties == {"number": "7", "from": "shop", "method": "PUT", "path": "/orders/7"}
        assert (await client.get("/orders/8")).status_code == 202
        assert (await run.message("OrderAsked")).content is None
        assert (await client.get("/orders/all")).status_code == 202
        await run.message("AllAsked")
        assert await client.post("/events", content="[]", headers={"Content-Type": "application/cloudevents+json"})
        assert (await run.message("Event")).content == []
        assert (await client.get("/livez")).text == "ok\n"
        assert len(run.published) == 4


async def test_the_same_idempotency_key_gives_the_same_id() -> None:
    async with serving() as (_, client):
        ids = [
            (await client.post("/events", json=1, headers={"Idempotency-Key": key})).json()["id"]
            for key in ("a", "a", "b")
        ]
        assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("POST", "/nothing", b"{}", {}, 404, "NOT_FOUND"),
        ("POST", "/events/", b"{}", {}, 404, "NOT_FOUND"),
        ("POST", "/orders/a/b", b"{}", {}, 404, "NOT_FOUND"),
        ("POST", "/orders/7", b"{}", {}, 405, "METHOD_NOT_ALLOWED"),
        ("HEAD", "/events", b"", {}, 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/events", b"x" * 2001, {}, 413, "TOO_LARGE"),
        ("POST", "/events", b"<a/>", {"Content-Type": "text/xml"}, 415, "NOT_JSON"),
        ("POST", "/events", b"{}", {"Content-Type": ""}, 415, "NOT_JSON"),
        ("POST", "/events", b"", {}, 400, "BAD_JSON"),
        ("POST", "/events", b"{", {}, 400, "BAD_JSON"),
        ("POST", "/events", b"NaN", {}, 400, "BAD_JSON"),
        ("POST", "/events", b'{"a":1,"a":2}', {}, 400, "BAD_JSON"),
        ("POST", "/events", b"\xff\xfe", {}, 400, "BAD_JSON"),
        ("POST", "/events", b"[" * 900 + b"]" * 900, {}, 400, "BAD_JSON"),
        ("POST", "/events", b"1", {"X-Correlation-ID": "a b\tc"}, 400, "BAD_HEADER"),
    ],
)
async def test_what_is_wrong_is_a_problem(
    method: str, path: str, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    async with serving(maxBodyBytes=2000) as (run, client):
        answer = await client.request(
            method, path, content=body, headers={"Content-Type": "application/json", **headers}
        )
        if method == "HEAD":
            assert answer.status_code == status
        else:
            problem(answer, status, code)
        assert run.published == []


async def test_a_wrong_method_names_the_right_ones() -> None:
    async with serving() as (_, client):
        answer = await client.delete("/orders/7")
        assert sorted(answer.headers["allow"].split(", ")) == ["GET", "PUT"]


HEAD = b"POST /events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1770\r\n" + b"x" * 6000 + b"\r\n", b" 413 "),
        (HEAD + b"Content-Length: 9\r\n\r\n{", b" 408 "),
    ],
)
async def test_a_body_that_is_endless_or_does_not_come_is_given_up(said: bytes, status: bytes) -> None:
    async with serving(maxBodyBytes=5000, readWithin=0.2) as (run, client):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(said)
        assert status in await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        assert run.published == []


async def test_the_rate_is_limited() -> None:
    async with serving(ratePerSecond=0.5, burst=3) as (run, client):
        answers = [await client.post("/events", json=1) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [202, 202, 202, 429, 429]
        problem(answers[-1], 429, "TOO_MANY_REQUESTS")
        assert int(answers[-1].headers["retry-after"]) >= 1
        assert len(run.published) == 3


class Stuck(MessagePublisher):
    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.waiting = 0

    async def start(self) -> None: ...

    async def publish(self, message: Message) -> None:
        self.waiting += 1
        await self.go_on.wait()


async def test_a_publisher_that_is_stuck_or_fails_is_no_success() -> None:
    stuck = Stuck()
    async with serving(stuck, maxAtOnce=2, publishWithin=0.5) as (run, client):
        asked = [asyncio.create_task(client.post("/events", json=1)) for _ in range(2)]
        await run.until(lambda: stuck.waiting == 2)
        problem(await client.post("/events", json=1), 503, "BUSY")
        for answer in await asyncio.gather(*asked):
            problem(answer, 503, "NOT_PUBLISHED")
    async with serving() as (run, client):
        run.publisher.refuse(OSError("the broker's password is hunter2"))
        answer = await client.post("/events", json=1)
        problem(answer, 503, "NOT_PUBLISHED")
        assert "hunter2" not in answer.text


async def test_a_token_is_needed_where_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_TOKEN", "s3cret")
    async with serving(token="env:WEB_TOKEN") as (run, client):
        problem(await client.post("/events", json=1), 401, "UNAUTHORIZED")
        problem(await client.post("/events", json=1, headers={"Authorization": "Bearer other"}), 401, "UNAUTHORIZED")
        assert run.published == []
        assert (await client.post("/events", json=1, headers={"Authorization": "Bearer s3cret"})).status_code == 202


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"routes": []}, "names no route"),
        ({"routes": [{"path": "events", "type": "E"}]}, r"routes\[0\].*'path' 'events' is no path"),
        ({"routes": [{"path": "/a/../b", "type": "E"}, {"path": "/x y", "type": "E"}]}, "no path"),
        ({"routes": [{"path": "/a", "type": "E", "verb": "POST"}]}, r"routes\[0\]"),
        ({"routes": [{"path": "/a", "method": "TRACE", "type": "E"}]}, "'method' must be one of"),
        ({"routes": [{"path": "/a/{x}", "type": "E"}, {"path": "/a/{y}", "type": "F"}]}, "declared twice"),
        ({"routes": [{"path": "/api/componentHost/x", "type": "E"}]}, "is taken"),
        ({"address": "0.0.0.0"}, "open to others"),
        ({"token": "env:NOT_THERE_AT_ALL"}, "NOT_THERE_AT_ALL, which is not set"),
    ],
)
async def test_wrong_settings_are_named(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        async with serving(**settings):
            pass


async def test_a_port_that_is_taken_fails_the_start() -> None:
    async with serving() as (_, client):
        with pytest.raises(Refused, match="PORT_IN_USE"):
            async with serving(port=client.base_url.port):
                pass


async def test_without_a_port_it_answers_on_the_replicas() -> None:
    root = folder("web-api") / "content"
    code = Code("web-api", "1.0.0", "d", str(root), "tdie_web_api:WebApi", {"routes": ROUTES})
    publisher = Code("p", "1", "d", str(folder("basic-publisher") / "content"), "tdie_basic_publisher:BasicPublisher")
    host = Host(HostOrder("intake.0", "intake", "n", "s", "python", code, publisher=publisher), lambda: None)
    transport = httpx.ASGITransport(application(host, lambda: None))
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        problem(await client.post("/events", json=1), 404, "NOT_FOUND")  # not started yet
        await host.start()
        answer = await client.post("/events", json=1)
        assert (answer.status_code, list(answer.json())) == (202, ["id"])
        assert (await client.get("/api/componentHost/configuration")).json()["state"] == "Started"
        problem(await client.get("/nothing"), 404, "NOT_FOUND")
        await host.stop()
        problem(await client.post("/events", json=1), 404, "NOT_FOUND")
        await host.destroy()
