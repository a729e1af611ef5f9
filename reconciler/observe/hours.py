"""The time of day, as far as planning may know it: whether the cluster's windows are open, and until when."""

from __future__ import annotations

from agent.clock import Clock, Monotonic
from reconciler.model.observed import Window
from reconciler.model.windows import SyncWindow, at

LOOK_AGAIN = 60.0  # seconds: the time of day may be set anew meanwhile


class Hours:
    """Turns the time of day into a value that stays the same object until a window begins or ends."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._windows: tuple[SyncWindow, ...] = ()
        self._valid_until = Monotonic(0.0)
        self._window = Window()

    def now(self, windows: tuple[SyncWindow, ...]) -> Window:
        """Whether commits may be carried out now."""
        now = self._clock.now()
        if windows == self._windows and (not windows or now < self._valid_until):
            return self._window
        self._windows = windows
        moment = at(windows, self._clock.wall())
        until = None if moment.changes_in is None else Monotonic(now + moment.changes_in)
        self._valid_until = Monotonic(min(now + LOOK_AGAIN, until if until is not None else now + LOOK_AGAIN))
        found = Window(moment.open, moment.detail, None if moment.open else until)
        lapsed = self._window.until is not None and self._window.until <= now
        if lapsed or not _same(found, self._window):
            self._window = found
        return self._window


def _same(found: Window, before: Window) -> bool:
    """Two looks at the same closed window differ by the time between two clocks being read."""
    if (found.open, found.detail) != (before.open, before.detail):
        return False
    if found.until is None or before.until is None:
        return found.until is before.until
    return abs(found.until - before.until) < 1.0
