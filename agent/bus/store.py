"""The one thread that writes the bus file. What comes while it writes is written together next: many share one fsync."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from agent.bus.file import BusFile
from agent.errors import Waiting

T = TypeVar("T")
_TOGETHER = 256  # pieces of work in one transaction


class Store(Protocol):
    """Where a bus keeps its messages. Raises Waiting (BUS_WRITE) when nothing could be written; it did not happen then."""

    async def open(self) -> str:
        """The store can be used; returns why an earlier file had to be left aside, or an empty text."""
        ...

    def do(self, work: Callable[[BusFile], T], *, durable: bool = False) -> asyncio.Future[T]:
        """What `work` returns, after its transaction was committed; `durable`: and is on disk."""
        ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class _Work:
    work: Callable[[BusFile], Any]
    durable: bool
    answer: asyncio.Future[Any]


class ThreadStore:
    """A bus file with a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._file: BusFile | None = None

    async def open(self) -> str:
        try:
            self._file = await asyncio.to_thread(BusFile, self._path)
        except (sqlite3.Error, OSError) as error:
            raise Waiting(f"{self._path.name}: {error}", code="BUS_WRITE") from error
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._serve, args=(self._file, loop), name="bus", daemon=True)
        self._thread.start()
        return self._file.rebuilt

    def do(self, work: Callable[[BusFile], T], *, durable: bool = False) -> asyncio.Future[T]:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.put(_Work(work, durable, answer))
        return answer

    async def close(self) -> None:
        """Everything asked for so far is written, and the file is closed."""
        if self._thread is not None:
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    def _serve(self, file: BusFile, loop: asyncio.AbstractEventLoop) -> None:
        ended = False
        while not ended:
            batch = [self._queue.get()]
            while len(batch) < _TOGETHER and not self._queue.empty():
                batch.append(self._queue.get())
            ended = None in batch
            wanted = [work for work in batch if work is not None]
            if wanted:
                answers = _done(file, wanted, self._path.name)
                loop.call_soon_threadsafe(_answer, wanted, answers)
        file.close()


def _done(file: BusFile, wanted: list[_Work], name: str) -> list[Any]:
    """The answer to each piece of work: all in one transaction. What the disk refuses is refused for all; a piece that
    fails by itself fails alone."""
    try:
        file.begin(durable=any(work.durable for work in wanted))
        answers = [work.work(file) for work in wanted]
        file.commit()
    except Exception as error:  # noqa: BLE001 - carried to those who wait
        file.rollback()
        if isinstance(error, sqlite3.OperationalError):
            return [Waiting(f"{name}: {error}", code="BUS_WRITE")] * len(wanted)
        if len(wanted) > 1:
            return [answer for work in wanted for answer in _done(file, [work], name)]
        return [error]
    return answers


def _answer(wanted: list[_Work], answers: list[Any]) -> None:
    for work, answer in zip(wanted, answers, strict=True):
        if work.answer.done():
            continue  # nobody waits any more
        if isinstance(answer, Exception):
            work.answer.set_exception(answer)
        else:
            work.answer.set_result(answer)
