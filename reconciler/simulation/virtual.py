"""Virtual time: an asyncio loop that jumps to its next timer instead of sleeping. Same run, same order of events."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context, ContextVar
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


class Process:
    """Something that runs in this world and can be stopped in the middle of anything, as a process is by SIGSTOP.

    While it is paused nothing of it runs; its timers fire late, and everybody else goes on.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.paused = False
        self._parked: list[asyncio.Handle] = []
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in order

    def spawn(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """A task of this process; so are all that it makes."""
        context = Context()
        context.run(_RUNNING.set, self)
        task = asyncio.get_running_loop().create_task(coro, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None), context=Context())
        return task

    async def kill(self) -> None:
        """Everything it does ends."""
        self.resume()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def pause(self) -> None:
        """Nothing of it runs from here on."""
        self.paused = True

    def resume(self) -> None:
        """It goes on where it was."""
        self.paused = False
        parked, self._parked = self._parked, []
        loop = asyncio.get_running_loop()
        for handle in parked:
            if not handle.cancelled():
                loop.call_soon(handle._run)

    def park(self, handle: asyncio.Handle) -> None:
        """Runs when the process goes on."""
        self._parked.append(handle)


_RUNNING: ContextVar[Process | None] = ContextVar("running process", default=None)


def outside(coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """A task that belongs to nobody: what is on its way in a network goes on whoever sent it."""
    return asyncio.get_running_loop().create_task(coro, name=name, context=Context())


def later(delay: float, callback: Callable[[*Args], object], *args: *Args) -> asyncio.TimerHandle:
    """`callback` after this many seconds, whoever is paused then."""
    return asyncio.get_running_loop().call_later(delay, callback, *args, context=Context())


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

    def call_soon(
        self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        owner = _RUNNING.get() if context is None else context.get(_RUNNING)
        if owner is None or not owner.paused:
            return super().call_soon(callback, *args, context=context)
        handle = asyncio.Handle(callback, args, self, context)
        owner.park(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> asyncio.TimerHandle:
        owner = _RUNNING.get() if context is None else context.get(_RUNNING)
        if owner is None:
            return super().call_at(when, callback, *args, context=context)
        mine: list[asyncio.TimerHandle] = []

        def due() -> None:
            if owner.paused:
                owner.park(asyncio.Handle(run, (), self, context))
            else:
                callback(*args)

        def run() -> None:
            if not mine[0].cancelled():  # perhaps by what had to run first when the process went on
                callback(*args)

        mine.append(super().call_at(when, due, context=context))
        return mine[0]

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
