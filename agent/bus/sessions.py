"""The socket that hosts of this node connect to. Each can only speak as the replica whose process it is."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from agent.bus.bus import Bus
from agent.bus.frames import Frame, FrameInvalid
from agent.bus.lanes import Consumer
from agent.bus.line import Line
from agent.bus.values import Delivery, Envelope
from agent.errors import Invalid, Refused, TdieError, Waiting
from agent.keeper.address import unix_address
from agent.keeper.protocol import HostOrder

log = structlog.get_logger("bus")

HELLO_WITHIN = 5.0  # seconds
MAX_WINDOW = 1000
_UNANSWERED = 8 << 20  # bytes of one host that are being written; it is not read further until they are
_NAME = 200  # longest id, topic, type
_LOOK = 2.0  # seconds between looks whether hosts still are what they were let in as
_CREDENTIALS = struct.Struct("3i")

HostOf = Callable[[int], HostOrder | None]
"""The order of the host with this process id, or None."""


class Sessions:
    """Serves hosts on a unix socket."""

    def __init__(self, path: Path, bus: Bus, host_of: HostOf) -> None:
        self._path, self._bus, self._host_of = path, bus, host_of
        self._open: set[asyncio.Task[None]] = set()
        self._known: dict[Line, tuple[int, HostOrder]] = {}  # who was let in as what
        self._ended = False

    async def run(self) -> None:
        """Serve for ever, once the bus is ready."""
        await self._bus.ready.wait()
        self._path.unlink(missing_ok=True)
        old = os.umask(0o177)
        try:
            with unix_address(self._path) as address:
                server = await asyncio.start_unix_server(self._connected, address, backlog=512)
        finally:
            os.umask(old)
        async with server:
            try:
                while True:
                    await asyncio.sleep(_LOOK)
                    self._send_away()
            finally:
                await self._end(server)

    async def _end(self, server: asyncio.Server) -> None:
        """Every host is sent away, also one that comes at this moment: asyncio would leave a connection open that it accepted and
        has no transport for yet when its server closes."""
        for listening in server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        self._ended = True
        await asyncio.sleep(0)  # now it has
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _send_away(self) -> None:
        """Hosts that are another replica's now, or subscribe to something else, come back as what they are."""
        for line, (pid, was) in list(self._known.items()):
            now = self._host_of(pid)
            if now is not None and (now.instance, now.subscriptions) != (was.instance, was.subscriptions):
                line.close()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._ended:  # it was accepted in the moment of the end
            writer.close()
            return
        line = Line(reader, writer)
        task = asyncio.create_task(self._serve(line, writer), name="bus session")
        self._open.add(task)

        def over(task: asyncio.Task[None]) -> None:
            """Here, because a task that is cancelled before its first step closes nothing itself."""
            self._open.discard(task)
            line.close()

        task.add_done_callback(over)

    async def _serve(self, line: Line, writer: asyncio.StreamWriter) -> None:
        try:
            pid = _peer(writer)
            host, take, rest = await self._hello(line, pid)
            self._known[line] = (pid, host)
            await _Session(self._bus, line, host).run(take, rest)
        except TdieError as error:
            line.send({"do": "refused", "code": error.code, "detail": error.detail})
        except (OSError, TimeoutError) as error:
            log.debug("a host is gone", error=str(error))
        finally:
            self._known.pop(line, None)

    async def _hello(self, line: Line, pid: int) -> tuple[HostOrder, int, list[Frame]]:
        async with asyncio.timeout(HELLO_WITHIN):
            (head, _), *rest = await line.receive()
        host = self._host_of(pid)
        if host is None or head.get("do") != "hello":
            raise Refused(f"process {pid} is no host of this node", code="NO_HOST")
        take = head.get("take")
        if not isinstance(take, int) or not 0 <= take <= MAX_WINDOW:
            raise Invalid("take is a number up to 1000")
        if take and not host.subscriptions:  # it may have been told of some before we know
            raise Refused(f"{host.replica} subscribes to nothing", code="NOT_SUBSCRIBED")
        line.send({"do": "welcome"})
        return host, take, rest


class _Session:
    """One connection of one host."""

    def __init__(self, bus: Bus, line: Line, host: HostOrder) -> None:
        self._bus, self._line, self._host = bus, line, host
        self._unanswered = 0
        self._answered = asyncio.Event()
        self._consumer: Consumer | None = None
        self._polite = False

    async def run(self, take: int, rest: list[Frame]) -> None:
        """Serve until the host is gone. Raises OSError then, or FrameInvalid."""
        if take:
            self._consumer = Consumer(self._host.instance, take, self._give)
            self._bus.join(self._consumer)
        try:
            while True:
                await self._obey(rest)
                rest = await self._line.receive()
        except asyncio.CancelledError:
            self._polite = True  # it is this agent that ends
            raise
        finally:
            if self._consumer is not None:
                self._bus.leave(self._consumer, politely=self._polite)

    async def _obey(self, frames: Sequence[Frame]) -> None:
        published: list[tuple[int, Envelope]] = []
        for head, body in frames:
            match head.get("do"):
                case "publish":
                    self._take(head, body, published)
                case "done" | "failed" as outcome:
                    self._worked(outcome, head)
                case "bye":
                    self._polite = True
                case other:
                    raise FrameInvalid(f"a host asks for {other!r}")
        if published:
            await self._publish(published)

    def _take(self, head: Mapping[str, Any], body: bytes, published: list[tuple[int, Envelope]]) -> None:
        number, texts = head.get("n"), [head.get(name) for name in ("id", "topic", "type")]
        if not isinstance(number, int):
            raise FrameInvalid("a message without a number")
        id, topic, type_ = texts
        if (
            not all(isinstance(text, str) and len(text) <= _NAME and text.isprintable() for text in texts)
            or not id
            or not topic
        ):
            detail = f"id and topic are printable texts of 1 to {_NAME} characters, type of up to {_NAME}"
            self._line.send({"do": "rejected", "n": [number], "code": "MESSAGE_INVALID", "detail": detail})
            return
        published.append((number, Envelope(str(id), str(topic), str(type_), body)))

    async def _publish(self, published: Sequence[tuple[int, Envelope]]) -> None:
        size = sum(len(envelope.body) for _, envelope in published)
        numbers = [number for number, _ in published]
        written = await self._bus.accept([envelope for _, envelope in published])
        self._unanswered += size
        written.add_done_callback(lambda done: self._accepted(numbers, size, done))
        while self._unanswered > _UNANSWERED:
            self._answered.clear()
            await self._answered.wait()

    def _accepted(self, numbers: Sequence[int], size: int, done: asyncio.Future[None]) -> None:
        self._unanswered -= size
        self._answered.set()
        if done.cancelled() or done.exception() is not None:
            asyncio.get_running_loop().call_later(1.0, self._line.close)  # the host says it again over its next line
        else:
            self._line.send({"do": "accepted", "n": numbers})

    def _worked(self, outcome: str, head: Mapping[str, Any]) -> None:
        number = head.get("n")
        if self._consumer is None or not isinstance(number, int):
            raise FrameInvalid("an outcome of nothing")
        if outcome == "done":
            self._bus.done(self._consumer, number)
        else:
            error = str(head.get("error") or "no reason given").encode(errors="replace").decode()
            self._bus.failed(self._consumer, number, error)

    def _give(self, number: int, delivery: Delivery, body: bytes) -> None:
        self._line.send({"do": "deliver", "n": number, "attempt": delivery.attempts + 1}, body)


def _peer(writer: asyncio.StreamWriter) -> int:
    """The process at the other end, as the kernel says; Waiting when it is another user's."""
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    if uid not in (os.getuid(), 0):
        raise Waiting("the host belongs to another user", code="NO_HOST")
    return int(pid)
