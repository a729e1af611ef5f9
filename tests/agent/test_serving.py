"""Callers that never finish asking: each connection ends, and nobody else notices."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent import serving
from agent.api.auth import BodyLimit
from agent.serving import HEAD_LIMIT, Server


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(serving, "HEAD_WITHIN", 0.5)
    server = Server(BodyLimit(_echo, limit=1 << 20, within=0.5), grace=1)
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listener]), name="server")
    while not server.started:
        await asyncio.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    await task


async def _until_closed(port: int, *pieces: bytes, pause: float = 0.1) -> bytes:
    """What comes back until the other side closes, when these pieces are sent one after the other, the last for ever."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def talk() -> None:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause)
        while pieces:
            writer.write(pieces[-1])
            await asyncio.sleep(pause)

    talking = asyncio.create_task(talk(), name="talk")
    answer = b""
    try:
        async with asyncio.timeout(10):
            while piece := await reader.read(1000):
                answer += piece
                if b"HTTP/1.1 4" in answer:  # who goes on talking may lose what was said
                    talking.cancel()
            return answer
    except ConnectionResetError:
        return answer
    finally:
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        writer.close()


ASKED = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
ANSWERED = b"HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    ("pieces", "comes"),
    [
        ((), b""),
        ((b"GET / HTTP/1.1\r\n", b"X: y\r\n"), b""),
        ((ASKED, b"GET / HTTP/1.1\r\n", b"X: y\r\n"), ANSWERED),
        ((b"GET / HTTP/1.1\r\nX: " + b"y" * HEAD_LIMIT,), b"HTTP/1.1 400"),
        ((b"GET /" + b"y" * HEAD_LIMIT,), b"HTTP/1.1 400"),
        ((b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n", b"x"), b"HTTP/1.1 408"),
        ((b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), b"HTTP/1.1 408"),
    ],
    ids=["silence", "slow head", "slow second head", "large header", "large path", "slow body", "slow chunks"],
)
async def test_it_ends(pieces: tuple[bytes, ...], comes: bytes, port: int) -> None:
    answer = await _until_closed(port, *pieces)
    assert answer.startswith(comes) if comes else answer == b""
    assert b"BODY_TOO_SLOW" in answer if comes.endswith(b"408") else b"BODY" not in answer
    reader, writer = await asyncio.open_connection("127.0.0.1", port)  # others are served as ever
    for _ in range(3):
        writer.write(ASKED)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(ANSWERED)
    writer.close()


async def test_a_large_body_is_no_large_head(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    size = HEAD_LIMIT * 4
    writer.write(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(ANSWERED)
    assert len(await reader.readexactly(size)) == size
    writer.close()
