"""Virtual time: an asyncio loop that jumps to its next timer instead of sleeping. Same run, same order of events."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, TypeVar, TypeVarTuple

from agent.clock import Monotonic

T = TypeVar("T")
Args = TypeVarTuple("Args")
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Deadlock(RuntimeError):
    """Every task waits for something that nothing in this world will ever bring."""


class _Instant(selectors.SelectSelector):
    """A selector that never waits; the time it was asked to wait for is what the clock jumps."""

    def __init__(self) -> None:
        super().__init__()
        self.jump = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("nothing is scheduled and nothing can arrive from outside")
        self.jump = max(0.0, timeout)
        return super().select(0)


class _Numbered(asyncio.Task[Any]):
    """A task whose place in a set is the same in every run, where others go by their address in memory."""

    def __init__(self, coro: Any, number: int, loop: asyncio.AbstractEventLoop, context: Context | None) -> None:
        self._number = number
        super().__init__(coro, loop=loop, context=context)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` moves only when everything that is ready has run."""

    def __init__(self) -> None:
        self._instant = _Instant()
        self._now = 0.0
        super().__init__(self._instant)
        self._numbers = count()
        self.set_task_factory(self._task)

    def _task(self, _loop: asyncio.AbstractEventLoop, coro: Any, context: Context | None = None) -> asyncio.Task[Any]:
        return _Numbered(coro, next(self._numbers), self, context)

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        super()._run_once()  # type: ignore[misc]  # the one hook asyncio leaves between selecting and running
        self._now += self._instant.jump
        self._instant.jump = 0.0

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Args], T], *args: *Args) -> asyncio.Future[T]:
        """Blocking work happens at once: threads would bring real time into this world."""
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - carried to the caller, whatever it is
            future.set_exception(error)
        return future

    def call_soon_threadsafe(
        self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)


class VirtualClock:
    """The clock of a virtual loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now(self) -> Monotonic:
        return Monotonic(self._loop.time())

    def wall(self) -> datetime:
        return EPOCH + timedelta(seconds=self._loop.time())


def run(main: Coroutine[object, object, T]) -> T:
    """What `main` returns, in no real time to speak of. Tasks it leaves behind are cancelled."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
