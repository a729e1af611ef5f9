"""The adapter against servers that misbehave: silence, strange answers, refused tokens, odd indexes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from agent.consul.address import Address
from agent.consul.client import ConsulClient
from agent.consul.protocol import TxnOp
from agent.errors import Denied, Waiting

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[Address]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield Address("127.0.0.1", int(runner.addresses[0][1]))
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, ""),
        (200, "null"),
        (200, "<html>a portal</html>"),
        (200, '{"half": '),
        (200, "[{}]"),
        (200, '"text"'),
        (404, "no such page"),
        (500, "No cluster leader"),
        (429, "slow down"),
        (503, ""),
    ],
)
async def test_an_answer_that_makes_no_sense_is_never_nothing(status: int, body: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    async with served(answer) as address:
        client = ConsulClient(address)
        for ask in (
            client.get("k"),
            client.get_all("k"),
            client.watch("k", 0, 1),
            client.local_services(),
            client.watch_checks("c", 0, 1),
            client.watch_service("s", "c", 3, 1),
            client.session_info("s"),
        ):
            with pytest.raises(Waiting):
                await ask
        await client.close()


async def test_a_black_hole_ends_with_the_deadline() -> None:
    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        raise AssertionError

    async with served(answer) as address:
        client = ConsulClient(address, rpc_timeout=0.2)
        started = time.monotonic()
        with pytest.raises(Waiting, match=r"no answer within"):
            await client.get("k")
        with pytest.raises(Waiting):
            await client.session_renew("s")
        assert time.monotonic() - started < 3
        await client.close()


async def test_a_hundred_watches_do_not_delay_a_write() -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.method == "GET":
            await asyncio.sleep(2)
        return web.Response(text="true", headers={"X-Consul-Index": "9"})

    async with served(answer) as address:
        client = ConsulClient(address)
        watches = [asyncio.create_task(client.watch(f"k{n}", 5, 60)) for n in range(100)]
        await asyncio.sleep(0.1)
        started = time.monotonic()
        assert await client.put("k", b"")
        assert time.monotonic() - started < 1
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await client.close()


async def test_a_refused_token_is_read_again_from_its_file(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.headers.get("X-Consul-Token") != "new":
            return web.Response(status=403, text="ACL not found")
        return web.json_response({"Results": [], "Errors": None} if request.path == "/v1/txn" else True)

    file = tmp_path / "token"
    file.write_text("old")
    async with served(answer) as address:
        client = ConsulClient(address, token_file=file)
        with pytest.raises(Denied) as raised:
            await client.put("k", b"")
        assert "old" not in str(raised.value)
        file.write_text("new\n")
        assert await client.put("k", b"")
        assert await client.txn([TxnOp("set", "k", b"")]) == ()
        await client.close()


async def test_the_environment_does_not_reach_in(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("X-Consul-Token"))
        return web.json_response(True)

    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "from the environment")
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "unix:///nowhere")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with served(answer) as address:
        client = ConsulClient(address, token="given")
        await client.put("k", b"")
        await client.close()
    assert seen == ["given"]


@pytest.mark.parametrize("header", ["0", "7", "3", "nonsense", None])
async def test_odd_indexes_never_make_a_busy_loop(header: str | None) -> None:
    questions = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal questions
        questions += 1
        headers = {"X-Consul-Index": header} if header is not None else {}
        return web.json_response([{"Key": "k", "Value": "", "CreateIndex": 1, "ModifyIndex": 1}], headers=headers)

    async with served(answer) as address:
        client = ConsulClient(address)
        index, started = 7, time.monotonic()
        while time.monotonic() - started < 1.2:
            try:
                index, _ = await client.watch("k", index, 0.6)
            except Waiting:
                break  # no index at all is no answer
        assert questions <= 7
        await client.close()
