"""The line to the keeper: what this host says and hears. It outlives a keeper and finds the next one."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from agent.errors import TdieError
from agent.keeper import codec
from agent.keeper.address import unix_address
from agent.keeper.protocol import HostOrder

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
log = logging.getLogger("host")


class Uplink:
    """Tells the newest status whenever it changed; iterating gives what the keeper asks."""

    def __init__(self, channel: socket.socket, keeper: str, order: Callable[[], HostOrder]) -> None:
        self._channel: socket.socket | None = channel
        self._keeper, self._order = keeper, order
        self._writer: asyncio.StreamWriter | None = None
        self._last: dict[str, Any] = {}
        self._first = asyncio.Event()  # the channel this host was born with is in use

    def tell(self, status: dict[str, Any]) -> None:
        """The keeper hears this, at once or when there is one again; the same thing is said only once."""
        if status != self._last:
            self._last = status
            if self._writer is not None:
                self._writer.write(codec.line(status))

    async def flush(self) -> None:
        """What was told has left this process, as far as somebody reads it."""
        try:
            async with asyncio.timeout(1.0):
                await self._first.wait()
                if self._writer is not None:
                    await self._writer.drain()
        except (OSError, TimeoutError):
            log.debug("the keeper did not hear the last words")

    async def requests(self) -> AsyncIterator[dict[str, Any]]:
        """Everything the keeper asks, over all keepers there will be."""
        while True:
            reader, self._writer = await self._connected()
            self._first.set()
            try:
                while text := await reader.readline():
                    yield codec.read_object(text)
            except (OSError, ValueError, TdieError) as error:
                log.debug("the line to the keeper broke: %s", error)
            finally:
                writer, self._writer = self._writer, None
                if writer is not None:
                    writer.close()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._channel is not None:
            channel, self._channel = self._channel, None
            channel.setblocking(False)
            reader, writer = await asyncio.open_unix_connection(sock=channel, limit=codec.MAX_LINE)
            if self._last:
                writer.write(codec.line(self._last))
            return reader, writer
        pause = FIRST_PAUSE
        while True:
            try:
                with unix_address(Path(self._keeper)) as address:
                    reader, writer = await asyncio.open_unix_connection(address, limit=codec.MAX_LINE)
            except OSError:
                await asyncio.sleep(pause)
                pause = min(LONGEST_PAUSE, pause * 1.5)
                continue
            order = json.loads(codec.order_text(self._order()))
            writer.write(codec.line({"do": "attach", **self._last, "order": order}))
            return reader, writer
