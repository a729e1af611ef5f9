"""The webhook publisher against a real HTTP server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web

from agent.components import folder
from agent.errors import Refused, Waiting
from agent.sdk import Message, SettingsError
from agent.sdk.testing import publishing

QUICK = {"retryAfter": "10ms", "retryAtMost": "50ms"}


class Receiver:
    """Answers what the test says, and remembers what came."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self._runner: web.AppRunner | None = None

    async def up(self, secure: ssl.SSLContext | None = None) -> None:
        app = web.Application()
        app.router.add_post("/{path:.*}", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=secure).start()

    async def down(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.path, headers, await request.read()))
        status, more = self.answers.pop(0) if self.answers else (204, {})
        return web.Response(status=status, headers=more)


@pytest.fixture
async def receiver(free_port: Callable[[], int]) -> AsyncIterator[Receiver]:
    made = Receiver(free_port())
    await made.up()
    yield made
    await made.down()


def to(receiver: Receiver, **settings: Any) -> Any:
    url = f"http://127.0.0.1:{receiver.port}/hook"
    return publishing(folder("webhook"), {"url": url, **QUICK, **settings})


async def test_a_message_is_one_request(receiver: Receiver) -> None:
    message = Message({"a": 1}, "Order", source="s.0", correlation_id="c-1")
    routes = [{"type": "Other", "url": f"http://127.0.0.1:{receiver.port}/other"}]
    async with to(receiver, headers={"X-Team": "a"}, routes=routes) as publisher:
        await publisher.publish(message)
        await publisher.publish(Message(type="Other"))
    (path, headers, body), (other, _, _) = receiver.requests
    assert (path, other) == ("/hook", "/other")
    assert json.loads(body) == message.to_dict()
    assert headers["content-type"] == "application/json"
    assert (headers["idempotency-key"], headers["x-correlation-id"], headers["x-team"]) == (message.id, "c-1", "a")


async def test_signatures_can_be_verified(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("whsec_" + base64.b64encode(b"a key of ours").decode() + "\n")
    async with to(receiver, secret=f"file:{tmp_path}/key", body="content") as publisher:
        await publisher.publish(Message({"a": "ü"}))
    async with to(receiver, secret="another key", signature="github") as publisher:
        await publisher.publish(Message("x"))
    (_, headers, body), (_, other, second) = receiver.requests
    assert json.loads(body) == {"a": "ü"}
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"a key of ours", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert other["x-hub-signature-256"] == "sha256=" + hmac.new(b"another key", second, hashlib.sha256).hexdigest()


async def test_what_fails_for_now_is_tried_again(receiver: Receiver) -> None:
    receiver.answers = [(503, {}), (429, {"Retry-After": "0"}), (500, {}), (204, {})]
    async with to(receiver) as publisher:
        await publisher.publish(Message("x"))
    assert len(receiver.requests) == 4
    assert len({headers["idempotency-key"] for _, headers, _ in receiver.requests}) == 1


async def test_a_server_that_comes_back_gets_the_message(receiver: Receiver) -> None:
    await receiver.down()
    async with to(receiver, attempts=200) as publisher:
        publishing = asyncio.create_task(publisher.publish(Message("x")))
        await asyncio.sleep(0.1)
        assert not publishing.done()
        await receiver.up()
        await asyncio.wait_for(publishing, 10)
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 410, 302])
async def test_what_will_not_change_is_refused_at_once(status: int, receiver: Receiver) -> None:
    receiver.answers = [(status, {"Location": "/elsewhere"})]
    async with to(receiver) as publisher:
        with pytest.raises(Refused, match=f"WEBHOOK_REFUSED it answered {status}"):
            await publisher.publish(Message("x"))
    assert len(receiver.requests) == 1


async def test_the_last_attempt_says_why(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.answers = [(503, {})] * 3
    async with to(receiver, attempts=3) as publisher:
        with pytest.raises(Waiting, match="WEBHOOK_UNREACHABLE it answered 503 after 3 attempts"):
            await publisher.publish(Message("x"))
    await receiver.down()
    url = f"http://user:hunter2@127.0.0.1:{receiver.port}/hook?token=hunter2"
    async with to(receiver, attempts=2, url=url) as publisher:
        with pytest.raises(Waiting, match="cannot be reached: ClientConnectorError") as told:
            await publisher.publish(Message("x"))
    assert "hunter2" not in str(told.value) + caplog.text


async def test_only_known_authorities_are_trusted(receiver: Receiver, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    await receiver.down()
    await receiver.up(context)
    url = f"https://127.0.0.1:{receiver.port}/hook"
    async with to(receiver, url=url, attempts=1) as publisher:
        with pytest.raises(Waiting, match="Certificate"):
            await publisher.publish(Message("x"))
    async with to(receiver, url=url, caFile=str(tmp_path / "ca.pem")) as publisher:
        await publisher.publish(Message("x"))
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"url": None}, "'url' is missing|'url' must be"),
        ({"url": "ftp://a/b"}, "http:// or https://"),
        ({"url": "https:///x"}, "http:// or https://"),
        ({"routes": [{"type": "A"}]}, r"'routes\[0\]' must have type and url"),
        ({"secret": "not base64!"}, "'secret' must be base64"),
        ({"body": "all"}, "'body' must be one of"),
        ({"headers": {"X": "env:NOT_THERE_AT_ALL"}}, "'X' names the variable NOT_THERE_AT_ALL"),
    ],
)
async def test_wrong_settings_are_named(settings: dict[str, Any], why: str, receiver: Receiver) -> None:
    with pytest.raises(SettingsError, match=why):
        async with to(receiver, **settings):
            pass
