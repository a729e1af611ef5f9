"""One thread, one selector: descriptors, timers, ended children, and work at the end of each turn."""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import signal
from collections.abc import Callable

from agent.keeper import linux

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Timer:
    """A call that is due at some time; `cancel` makes it not happen."""

    __slots__ = ("call", "when")

    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when = when
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Runs callbacks one after another. Times are CLOCK_BOOTTIME seconds."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._soon: list[Callable[[], None]] = []
        self._running = False
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._on_signal: dict[int, Callable[[], None]] = {}
        self.watch(self._wake, READ, self._signals)

    def watch(self, descriptor: int, events: int, call: Callable[[], None]) -> None:
        """`call` runs whenever the descriptor is ready; a second watch of it replaces the first."""
        if descriptor in self._selector.get_map():
            self._selector.modify(descriptor, events, call)
        else:
            self._selector.register(descriptor, events, call)

    def ignore(self, descriptor: int) -> None:
        """The descriptor is not watched any more."""
        if descriptor in self._selector.get_map():
            self._selector.unregister(descriptor)

    def at(self, when: float, call: Callable[[], None]) -> Timer:
        timer = Timer(when, call)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def soon(self, call: Callable[[], None]) -> None:
        """`call` runs at the end of this turn, after everything that is ready now."""
        self._soon.append(call)

    def on_signal(self, number: int, call: Callable[[], None]) -> None:
        self._on_signal[number] = call
        signal.signal(number, lambda _number, _frame: None)  # the byte in the pipe is what counts

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Work until `stop`."""
        before = signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        self._running = True
        try:
            while self._running:
                self._turn()
        finally:
            signal.set_wakeup_fd(before)

    def close(self) -> None:
        """Nothing is watched any more."""
        self._selector.close()
        os.close(self._wake)
        os.close(self._woken)

    def _turn(self) -> None:
        for key, _events in self._selector.select(self._patience()):
            if key.fd in self._selector.get_map():  # an earlier callback of this turn may have closed it
                key.data()
        now = linux.now()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.call is not None:
                timer.call()
        while self._soon:
            due, self._soon = self._soon, []
            for call in due:
                call()

    def _patience(self) -> float | None:
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - linux.now()) if self._timers else None

    def _signals(self) -> None:
        try:
            numbers = set(os.read(self._wake, 65536))
        except BlockingIOError:
            return
        for number in numbers:
            if (call := self._on_signal.get(number)) is not None:
                call()
