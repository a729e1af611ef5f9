"""What controllers remember in Consul for each other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agent import keys
from agent.clock import Monotonic
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from reconciler.execution.proven import NotLeading
from reconciler.execution.record import RecordStore
from reconciler.model.observed import Confirmed


class Clock:
    """Two clocks that were set: one counts from this machine's boot, the other tells the time of day."""

    def __init__(self, now: float, wall: datetime) -> None:
        self.boot, self.day = now, wall

    def now(self) -> Monotonic:
        return Monotonic(self.boot)

    def wall(self) -> datetime:
        return self.day


NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


async def test_what_was_confirmed_of_lost_nodes_has_its_time_from_no_clock_that_is_set() -> None:
    consul = MemoryConsul(Store(now=lambda: 0.0))
    session = await consul.session_create("controller", ttl=30.0, lock_delay=0.0)
    await consul.acquire(keys.leader("c"), b"", session)
    first = RecordStore("c", consul=consul, clock=Clock(1000.0, NOON))
    assert (await first.load()).confirmed_lost == Confirmed()
    await first.confirm_lost("digest", "ann", session)
    assert (await first.load()).confirmed_lost == Confirmed("digest", Monotonic(1000.0))
    for hours in (-1, 0, 1):
        clock = Clock(50.0, NOON + timedelta(hours=hours))
        elsewhere = RecordStore("c", consul=consul, clock=clock)
        assert (await elsewhere.load()).confirmed_lost == Confirmed("digest", Monotonic(50.0))
        clock.boot, clock.day = 90.0, NOON - timedelta(hours=hours)  # it was set meanwhile
        assert (await elsewhere.load()).confirmed_lost == Confirmed("digest", Monotonic(50.0))
    await first.confirm_lost("more", "ann", session)
    assert (await elsewhere.load()).confirmed_lost == Confirmed("more", Monotonic(90.0))
    await first.confirm_lost("", "ann", session)  # nothing was lost together: what was said before still holds
    assert (await first.load()).confirmed_lost.digest == "more"
    with pytest.raises(NotLeading):
        await first.confirm_lost("other", "ann", "no session")
