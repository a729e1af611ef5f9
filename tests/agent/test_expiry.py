"""What is sent is good until a moment on the clock of the machine it is sent to, never later than its sender meant."""

from __future__ import annotations

import pytest

from agent.clock import Monotonic
from agent.expiry import Expiry, FarClock
from agent.wire import Report


def report(at: float) -> Report:
    return Report(cluster="c", node="a", agent="x", boot_id="b", index=1, at=at, epoch=1)


@pytest.mark.parametrize(
    ("far", "travelled"), [(0.0, 0.0), (86_400.0, 0.0), (-3_000.0, 0.0), (500.0, 0.25), (-500.0, 4.0)]
)
def test_it_is_never_later_there_than_here(far: float, travelled: float) -> None:
    sent, came, now = 5_000.0, 5_000.0 + travelled, 5_040.0
    clock = FarClock.of(report(sent + far), Monotonic(came))
    expiry = clock.after(10.0, Monotonic(now))
    assert expiry.at == pytest.approx(now + far + 10.0 - travelled)
    assert not expiry.over("b", now + far)
    assert expiry.over("b", now + far + 10.0)


def test_another_boot_has_another_clock() -> None:
    assert Expiry("b", 100.0).over("c", 5.0)
    assert not Expiry("b", 100.0).over("b", 5.0)
