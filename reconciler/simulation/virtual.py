"""Virtual time: an asyncio loop that jumps to its next timer instead of sleeping. Same run, same order of events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context, ContextVar, copy_context
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar, TypeVarTuple

from agent.clock import Monotonic

T = TypeVar("T")
Args = TypeVarTuple("Args")
ROUNDS = 20_000  # of everything that is ready, at one moment
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Deadlock(RuntimeError):
    """Every task waits for something that nothing in this world will ever bring."""


class Livelock(RuntimeError):
    """Something is done again and again at one moment, so that time never goes on."""


class _Numbered(asyncio.Task[Any]):
    """A task whose place in a set is the same in every run, where others go by their address in memory."""

    def __init__(
        self, coro: Any, number: int, loop: asyncio.AbstractEventLoop, name: str | None, context: Context | None
    ) -> None:
        self._number = number
        super().__init__(coro, loop=loop, name=name, context=context)

    def __hash__(self) -> int:
        return self._number


class Process:
    """Something that runs in this world and can be stopped in the middle of anything, as a process is by SIGSTOP.

    While it is paused nothing of it runs; its timers fire late, and everybody else goes on.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.paused = False
        self._context = Context()
        self._context.run(_RUNNING.set, self)
        self._parked: list[Call] = []
        self._tasks: dict[asyncio.Task[Any], None] = {}  # in order

    def spawn(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """A task of this process; so are all that it makes."""
        task = asyncio.get_running_loop().create_task(coro, name=name, context=self._context.copy())
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None), context=Context())
        return task

    def later(self, delay: float, callback: Callable[[*Args], object], *args: *Args) -> asyncio.TimerHandle:
        """The process calls this after so many seconds, or when it goes on after that."""
        return asyncio.get_running_loop().call_later(delay, callback, *args, context=self._context)

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
        if not self.paused:
            self.paused = True
            _loop().paused += 1

    def resume(self) -> None:
        """It goes on where it was."""
        if self.paused:
            self.paused = False
            _loop().paused -= 1
            _loop().ready.extend(self._parked)
            self._parked = []

    def park(self, call: Call) -> None:
        """Runs when the process goes on."""
        self._parked.append(call)


_RUNNING: ContextVar[Process | None] = ContextVar("running process", default=None)


def outside(coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """A task that belongs to nobody: what is on its way in a network goes on whoever sent it."""
    return asyncio.get_running_loop().create_task(coro, name=name, context=Context())


def later(delay: float, callback: Callable[[*Args], object], *args: *Args) -> asyncio.TimerHandle:
    """`callback` after this many seconds, whoever is paused then."""
    return asyncio.get_running_loop().call_later(delay, callback, *args, context=Context())


class Call(asyncio.TimerHandle):
    """Something that is to be called; cancelled, it is not."""

    __slots__ = ()

    def __init__(  # not as its base does it: no part of that is needed here, and this is what a simulation does most
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None, when: float
    ) -> None:
        self._callback: Any = callback
        self._args: Any = args
        self._context = copy_context() if context is None else context
        self._when = when
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True
        self._callback = self._args = None

    def __repr__(self) -> str:
        return f"<call of {self._callback} at {self._when}>"


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose `time()` moves only when everything that is ready has run. Nothing outside of it can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.ready: deque[Call] = deque()
        self.paused = 0  # processes that are
        self._rounds = 0
        self.clock = 0.0  # seconds since this world began
        self._due: list[tuple[float, int, Call]] = []
        self._order = count()
        self._numbers = count()

    def time(self) -> float:
        return self.clock

    get_debug = staticmethod(bool)  # False, in C: every future that is made asks

    def create_task(self, coro: Any, *, name: Any = None, context: Context | None = None) -> asyncio.Task[Any]:
        return _Numbered(coro, next(self._numbers), self, name, context)

    def call_soon(self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None) -> Call:
        call = Call(callback, args, context, self.clock)
        self.ready.append(call)
        return call

    def call_later(
        self, delay: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> Call:
        return self.call_at(self.clock + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None
    ) -> Call:
        call = Call(callback, args, context, when)
        heappush(self._due, (when, next(self._order), call))
        return call

    def _run_once(self) -> None:
        """Everything that is ready; when nothing is, time jumps to what is due next."""
        ready = self.ready
        if not ready:
            self._rounds = 0
            self._jump()
        self._rounds += 1
        if self._rounds > ROUNDS:
            raise Livelock(f"{ROUNDS} rounds at {self.clock:.3f} s, at last {ready[0]}")
        for _ in range(len(ready)):
            call = ready.popleft()
            callback = call._callback
            if callback is None:
                continue
            if self.paused:
                owner = call._context.get(_RUNNING)
                if owner is not None and owner.paused:
                    owner.park(call)
                    continue
            try:
                call._context.run(callback, *call._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - as any event loop does it
                self.call_exception_handler({"message": f"Exception in callback {callback}", "exception": error})

    def _jump(self) -> None:
        due, ready = self._due, self.ready
        while due and due[0][2]._cancelled:
            heappop(due)
        if not due:
            raise Deadlock("nothing is scheduled and nothing can arrive from outside")
        self.clock = now = max(self.clock, due[0][0])
        while due and due[0][0] <= now:
            ready.append(heappop(due)[2])

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
    ) -> Call:
        return self.call_soon(callback, *args, context=context)

    def close(self) -> None:
        super().close()
        self.ready.clear()
        self._due.clear()


def _loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


class VirtualClock:
    """The clock of a virtual loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now(self) -> Monotonic:
        return Monotonic(self._loop.clock)

    def wall(self) -> datetime:
        return EPOCH + timedelta(seconds=self._loop.time())


def run(main: Coroutine[object, object, T]) -> T:
    """What `main` returns, in no real time to speak of. Tasks it leaves behind are cancelled."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
