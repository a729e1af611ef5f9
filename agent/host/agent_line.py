"""What a host asks the agent of its node about packages: HTTP over a unix socket, one request a connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.correlation import HEADER, current
from agent.errors import Invalid, Waiting
from agent.keeper.address import unix_address

PACKAGES = "packages.sock"  # beside the keeper's socket
PATIENCE = 120.0  # seconds for an answer: an upload may have an environment made
LARGEST = 16 << 20  # bytes of an answer


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent said, passed on as it is."""

    status: int
    media_type: str
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    socket: str, method: str, path: str, body: AsyncIterable[bytes] | None = None, media_type: str = "application/json"
) -> Answer:
    """The agent's answer. Waiting (AGENT_AWAY) when there is none."""
    import h11

    if not socket:
        raise Waiting("this host does not know its agent's socket", code="AGENT_AWAY", hint="start it anew")
    try:
        async with asyncio.timeout(PATIENCE):
            with unix_address(Path(socket)) as address:
                reader, writer = await asyncio.open_unix_connection(address)
            try:
                line = h11.Connection(h11.CLIENT)
                headers = [("Host", "agent"), ("Connection", "close"), (HEADER, current())]
                more = [("Content-Type", media_type), ("Transfer-Encoding", "chunked")] if body is not None else []
                return await _talk(
                    line, reader, writer, h11.Request(method=method, target=path, headers=headers + more), body
                )
            finally:
                writer.close()
    except h11.LocalProtocolError as error:
        raise Invalid("the request cannot be passed on to the agent") from error
    except (OSError, TimeoutError, h11.RemoteProtocolError) as error:
        raise Waiting("the agent of this node does not answer", code="AGENT_AWAY") from error


async def _talk(
    line: Any,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    request: Any,
    body: AsyncIterable[bytes] | None,
) -> Answer:
    import h11

    writer.write(line.send(request))
    try:
        if body is not None:
            async for chunk in body:
                writer.write(line.send(h11.Data(data=chunk)))
                await writer.drain()
        writer.write(line.send(h11.EndOfMessage()))
        await writer.drain()
    except ConnectionError:
        pass  # it refuses the rest, and says why
    head, parts = None, []
    while True:
        event = line.next_event()
        if event is h11.NEED_DATA:
            line.receive_data(await reader.read(1 << 16))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            parts.append(bytes(event.data))
            if sum(map(len, parts)) > LARGEST:
                raise Waiting("the agent's answer is too long", code="AGENT_AWAY")
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return Answer(head.status_code, _header(head.headers, b"content-type"), b"".join(parts))
        elif isinstance(event, h11.ConnectionClosed):
            raise OSError("closed before the answer was complete")


def _header(headers: Sequence[tuple[bytes, bytes]], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")
