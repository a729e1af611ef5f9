"""A stream of JSON lines over a non-blocking socket inside the keeper's loop."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.errors import Invalid
from agent.keeper import codec
from agent.keeper.loop import READ, WRITE, Loop

CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class Line:
    """A channel: its descriptor, the beginning of a line that was received, and what the other side has not taken yet."""

    descriptor: int
    held: bytes = b""
    unsent: bytes = b""


class Channel:
    """Lines in, lines out. `hear` gets every object, `ended` is called once when the other side is gone or talks nonsense.

    One that goes on with another image's line has what was under way there.
    """

    def __init__(
        self,
        loop: Loop,
        connection: socket.socket,
        hear: Callable[[dict[str, Any]], None],
        ended: Callable[[], None],
        line: Line | None = None,
    ) -> None:
        self._loop, self.socket = loop, connection
        self.hear, self.ended = hear, ended
        self.drained: Callable[[], None] | None = None
        self._in = codec.Lines(line.held if line else b"")
        self._out = bytearray(line.unsent if line else b"")
        self._waits = False
        self.closed = False
        connection.setblocking(False)
        loop.watch(connection.fileno(), READ, self._ready)
        if line is not None:
            loop.soon(self._ready)

    def line(self) -> Line:
        """All there is of this channel."""
        return Line(self.socket.fileno(), self._in.held, bytes(self._out))

    @property
    def waiting(self) -> int:
        """Bytes not taken by the other side yet."""
        return len(self._out)

    def tell(self, value: Mapping[str, Any]) -> None:
        self.write(codec.line(value))

    def write(self, data: bytes) -> None:
        """The bytes will be sent, now or when the other side reads on."""
        if not self.closed:
            self._out += data
            self._flush()

    def pump(self) -> None:
        """Everything that has arrived is heard now."""
        while not self.closed:
            try:
                data = self.socket.recv(CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            try:
                heard = self._in.feed(data)
            except Invalid:
                self.close()
                return
            for value in heard:
                self.hear(value)

    def close(self) -> None:
        """The socket is closed; `ended` has been called."""
        if not self.closed:
            self.closed = True
            self._loop.ignore(self.socket.fileno())
            self.socket.close()
            self.ended()

    def release(self) -> socket.socket:
        """The socket, which this channel does not watch any more."""
        self.closed = True
        self._loop.ignore(self.socket.fileno())
        return self.socket

    def _ready(self) -> None:
        if self.closed:
            return
        self._flush()
        if not self._out and self.drained is not None and not self.closed:
            self.drained()
        self.pump()

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: self.socket.send(memoryview(self._out)[:CHUNK].tobytes())]
        except BlockingIOError:
            pass
        except OSError:
            self._loop.soon(self.close)  # what it said before it went is still to be heard
            self._out.clear()
        if self._waits != bool(self._out) and not self.closed:
            self._waits = bool(self._out)
            self._loop.watch(self.socket.fileno(), READ | WRITE if self._waits else READ, self._ready)
