"""PUBLIC: the node's bus as a host uses it. It outlives an agent: what is not accepted yet is said again to the next one.

Standard library only, because it runs in every host.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agent.bus.frames import MAX_BODY, Frame, FrameInvalid, frame
from agent.bus.line import Line
from agent.errors import Invalid, Refused, TdieError
from agent.keeper.address import unix_address
from agent.sdk.extension import Deliver, describe
from agent.sdk.message import Message
from agent.tasks import end_all

WINDOW_COUNT, WINDOW_BYTES = 1000, 4 << 20  # published and not accepted yet; more waits
PREFETCH = 16  # messages on their way to a component that works on one
WORKERS_END_WITHIN = 2.0  # seconds
WORKED = 1000  # ids of messages that were worked on
_PAUSES = (0.05, 2.0)  # seconds between tries to connect: first, longest
log = logging.getLogger("bus")


class _Unaccepted:
    """A published message that is not on disk yet, as far as is known here."""

    __slots__ = ("accepted", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class BusPublisher:
    """Publishes for the replica whose process this is; `run` carries what `publish` was given, for as long as the host lives."""

    def __init__(self, path: Path) -> None:
        """`path` is the socket of the node's bus."""
        self._path = path
        self._unaccepted: dict[int, _Unaccepted] = {}
        self._bytes = 0
        self._number = 0
        self._line: Line | None = None
        self._queue: deque[asyncio.Future[None]] = deque()

    async def publish(self, message: Message, topic: str) -> None:
        """The message is on disk at the node's agent. Waits while the agent is away, or has no room.

        Raises Invalid (MESSAGE_TOO_LARGE) beyond 1 MiB, and Refused when the agent will never take it.
        """
        body = message.to_json().encode()
        if len(body) > MAX_BODY:
            raise Invalid(f"a message of {len(body)} bytes; at most {MAX_BODY} travel", code="MESSAGE_TOO_LARGE")
        while self._full(len(body)):
            await self._turn()
        self._number += 1
        number = self._number
        head = {"do": "publish", "n": number, "id": message.id, "topic": topic, "type": message.type}
        mine = self._unaccepted[number] = _Unaccepted(frame(head, body))
        self._bytes += len(mine.data)
        if self._line is not None:
            self._line.send_frame(mine.data)
        try:
            await mine.accepted
        finally:
            del self._unaccepted[number]
            self._bytes -= len(mine.data)
            self._next()

    async def run(self) -> None:
        """Carry for ever; after each connection that broke, what is not accepted is said again, in order."""
        while True:
            try:
                async with _connected(self._path, take=0) as (line, rest):
                    for unaccepted in self._unaccepted.values():
                        line.send_frame(unaccepted.data)
                    self._line = line
                    while True:
                        for head, _ in rest:
                            self._answered(head)
                        rest = await line.receive()
            except (OSError, FrameInvalid) as error:
                log.debug("the line to the bus broke: %s", error)
            finally:
                self._line = None

    def _answered(self, head: Mapping[str, Any]) -> None:
        for number in head.get("n", ()):
            found = self._unaccepted.get(number)
            if found is None or found.accepted.done():
                continue
            if head.get("do") == "accepted":
                found.accepted.set_result(None)
            else:
                found.accepted.set_exception(Refused(str(head.get("detail")), code=str(head.get("code"))))

    def _full(self, size: int) -> bool:
        held = self._unaccepted
        return bool(held) and (len(held) >= WINDOW_COUNT or self._bytes + size > WINDOW_BYTES)

    async def _turn(self) -> None:
        """Returns when there may be room again."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            self._next()  # the turn may have been ours
            raise

    def _next(self) -> None:
        woken = 0
        while self._queue and woken < 2:  # two, so that several small ones fill the room of a large one
            waiting = self._queue.popleft()
            if not waiting.done():
                waiting.set_result(None)
                woken += 1


async def consume(path: Path, deliver: Deliver, parallel: int = 1) -> None:
    """Deliver what the replica's instance subscribes to, up to `parallel` messages at once, until cancelled.

    A message that this process has worked on already, and whose acknowledgement was lost with an agent, is not delivered again.
    """
    worked = _Worked()
    while True:
        try:
            async with _connected(path, take=max(PREFETCH, 2 * parallel)) as (line, rest):
                await _consume(line, rest, deliver, worked, parallel)
        except (OSError, FrameInvalid) as error:
            log.debug("the line to the bus broke: %s", error)


class _Worked:
    """The ids of the last messages that were worked on."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def __contains__(self, id: str) -> bool:
        return id in self._ids

    def add(self, id: str) -> None:
        self._ids[id] = None
        if len(self._ids) > WORKED:
            del self._ids[next(iter(self._ids))]


async def _consume(line: Line, rest: list[Frame], deliver: Deliver, worked: _Worked, parallel: int) -> None:
    waiting: asyncio.Queue[Frame | None] = asyncio.Queue()
    workers = [asyncio.create_task(_work(line, waiting, deliver, worked), name="bus worker") for _ in range(parallel)]
    try:
        while True:
            for each in rest:
                waiting.put_nowait(each)
            rest = await line.receive()
    except asyncio.CancelledError:
        line.send({"do": "bye"})  # what was not worked on is nobody's fault
        raise
    except (OSError, FrameInvalid):
        while not waiting.empty():
            waiting.get_nowait()  # it comes again over the next line
        for _ in workers:
            waiting.put_nowait(None)
        await asyncio.gather(*workers)  # what is being worked on is finished
        raise
    finally:
        if left := await end_all(workers, WORKERS_END_WITHIN):
            log.warning("%d message(s) are given back, but what works on them does not end when cancelled", len(left))


async def _work(line: Line, waiting: asyncio.Queue[Frame | None], deliver: Deliver, worked: _Worked) -> None:
    while (next_one := await waiting.get()) is not None:
        head, body = next_one
        if head.get("do") == "deliver":
            line.send({**await _outcome(body, deliver, worked), "n": head.get("n")})


async def _outcome(body: bytes, deliver: Deliver, worked: _Worked) -> dict[str, Any]:
    try:
        message = Message.from_json(body)
        if message.id not in worked:
            await deliver(message)
            worked.add(message.id)
    except Exception as error:  # noqa: BLE001 - author code: the bus keeps the reason and tries again
        if isinstance(error, TdieError) and error.code == "STOPPING":
            await asyncio.Event().wait()  # until cancelled: the message is given back
        return {"do": "failed", "error": describe(error)}
    return {"do": "done"}


@asynccontextmanager
async def _connected(path: Path, take: int) -> AsyncIterator[tuple[Line, list[Frame]]]:
    """A connection to the bus, and what came with the welcome; the agent is waited for."""
    pause = _PAUSES[0]
    while (found := await _tried(path, take)) is None:
        await asyncio.sleep(pause)
        pause = min(_PAUSES[1], pause * 1.5)
    try:
        yield found
    finally:
        found[0].close()


async def _tried(path: Path, take: int) -> tuple[Line, list[Frame]] | None:
    line = None
    try:
        with unix_address(path) as address:
            line = Line(*await asyncio.open_unix_connection(address))
        line.send({"do": "hello", "take": take})
        (head, _), *rest = await line.receive()
        if head.get("do") == "welcome":
            welcome, line = line, None
            return welcome, rest
        log.debug("the bus does not let this host in yet: %s", head.get("detail"))
    except (OSError, FrameInvalid) as error:
        log.debug("the bus is away: %s", error)
    finally:
        if line is not None:
            line.close()
    return None
