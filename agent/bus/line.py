"""One connection on the bus socket, the same for both sides: frames in, frames out. Standard library only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from agent.bus.frames import Frame, Frames, frame

_CHUNK = 1 << 18


class Line:
    """Frames over one connection. What is sent within one turn of the event loop leaves together."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._frames = Frames()
        self._outgoing: list[bytes] = []

    async def receive(self) -> list[Frame]:
        """What came in, at least one frame. OSError when the other side is gone, FrameInvalid when it makes no sense."""
        while True:
            if not (data := await self._reader.read(_CHUNK)):
                raise ConnectionResetError("the other side is gone")
            if found := self._frames.feed(data):
                return found

    def send(self, head: Mapping[str, Any], body: bytes = b"") -> None:
        """The frame is on its way; whether it arrives is for the other side to say."""
        self.send_frame(frame(head, body))

    def send_frame(self, data: bytes) -> None:
        """The same for a frame that is made already."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(data)

    async def drain(self) -> None:
        """What was sent is taken by the kernel, as far as it has room."""
        self._flush()
        await self._writer.drain()

    @property
    def unsent(self) -> int:
        """Bytes that the other side has not taken yet."""
        return self._writer.transport.get_write_buffer_size() + sum(map(len, self._outgoing))

    def close(self) -> None:
        """What was sent leaves as far as the kernel takes it; nothing comes any more."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and not self._writer.is_closing():
            self._writer.write(b"".join(outgoing))
