"""Time as an edge: loop and agent get a Clock, so that both also run on virtual time."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import NewType, Protocol

Monotonic = NewType("Monotonic", float)
"""Seconds on a clock that only grows; comparable within one process or one machine's boot, never between machines."""


class Clock(Protocol):
    """What loop and agent may know about time."""

    def now(self) -> Monotonic:
        """Seconds since this machine booted, suspend included (CLOCK_BOOTTIME)."""
        ...

    def wall(self) -> datetime:
        """The time of day in UTC: for display and windows only, never for durations."""
        ...


class SystemClock:
    """The clock of this machine."""

    def now(self) -> Monotonic:
        return Monotonic(time.clock_gettime(time.CLOCK_BOOTTIME))

    def wall(self) -> datetime:
        return datetime.now(UTC)
