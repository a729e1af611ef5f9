"""PUBLIC: until when an agent may take over what it was sent (FAULTS row 3: steps on their way carry an expiry)."""

from __future__ import annotations

from dataclasses import dataclass

from agent.clock import Monotonic
from agent.wire import Report


@dataclass(frozen=True, slots=True)
class Expiry:
    """A moment on the boot clock of the machine that something is sent to: no other clock is known there."""

    boot_id: str
    at: float  # seconds

    def over(self, boot_id: str, now: float) -> bool:
        """Whether it is too late; so it is after the machine has booted again, whose clock then begins anew."""
        return boot_id != self.boot_id or now >= self.at


@dataclass(frozen=True, slots=True)
class FarClock:
    """The boot clock of another machine as a report showed it: it is never behind this, and ahead by as long as that travelled."""

    boot_id: str
    ahead: float  # seconds, of our own clock

    @classmethod
    def of(cls, report: Report, now: Monotonic) -> FarClock:
        """As read from a report that has just come."""
        return cls(report.boot_id, report.at - now)

    def after(self, seconds: float, now: Monotonic) -> Expiry:
        """At most so many seconds from now."""
        return Expiry(self.boot_id, now + self.ahead + seconds)
