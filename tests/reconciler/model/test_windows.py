"""When commits may be carried out."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agent.clock import Monotonic
from reconciler.model.windows import SyncWindow, at, check_schedule
from reconciler.observe.hours import Hours

NIGHTS = SyncWindow("0 22 * * 1-5", 2 * 3600.0, "Europe/Berlin")
FREEZE = SyncWindow("0 0 24 12 *", 3 * 86400.0, kind="deny")
LONG = SyncWindow("0 * * * *", 5400.0)  # longer than its own period: always open


def wall(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("windows", "when", "is_open", "changes_in"),
    [
        ((), "2026-11-25T12:00:00", True, None),
        ((NIGHTS,), "2026-11-25T20:59:59", False, 1.0),
        ((NIGHTS,), "2026-11-25T21:00:00", True, 7200.0),
        ((NIGHTS,), "2026-11-25T22:59:30", True, 30.0),
        ((NIGHTS,), "2026-11-25T23:00:00", False, 22 * 3600.0),
        ((NIGHTS,), "2026-07-01T20:00:00", True, 7200.0),  # summer time: an hour earlier in UTC
        ((NIGHTS,), "2026-11-28T21:30:00", False, 171_000.0),  # Saturday → Monday
        ((FREEZE,), "2026-12-23T23:59:00", True, 60.0),
        ((FREEZE,), "2026-12-25T00:00:00", False, 2 * 86400.0),
        ((NIGHTS, FREEZE), "2026-12-24T21:30:00", False, 5400.0),
        ((LONG,), "2026-12-24T21:45:00", True, 900.0),
    ],
)
def test_open_and_closed(windows: tuple[SyncWindow, ...], when: str, is_open: bool, changes_in: float | None) -> None:
    moment = at(windows, wall(when))
    assert (moment.open, moment.changes_in) == (is_open, changes_in)
    assert bool(moment.detail) is not is_open


@pytest.mark.parametrize(
    ("schedule", "zone", "what"),
    [
        ("0 22 * *", "UTC", "does not have the five fields"),
        ("99 * * * *", "UTC", "bad minute"),
        ("0 0 * * *", "Europe/Nowhere", "is not a time zone"),
        ("0 0 * * *", "../../etc/passwd", "is not a time zone"),
    ],
)
def test_what_makes_no_sense_is_said(schedule: str, zone: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        check_schedule(schedule, zone)


class Clocks:
    """Both clocks of a machine; the time of day may be set without the other noticing."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.day = wall("2026-11-25T20:00:00")

    def now(self) -> Monotonic:
        return Monotonic(self.seconds)

    def wall(self) -> datetime:
        return self.day


def test_the_same_object_until_a_window_begins() -> None:
    clocks = Clocks()
    hours = Hours(clocks)
    first = hours.now((NIGHTS,))
    assert not first.open
    assert first.until == 1000.0 + 3600.0
    clocks.seconds, clocks.day = 1100.0, wall("2026-11-25T20:01:40")
    assert hours.now((NIGHTS,)) is first
    clocks.seconds, clocks.day = 4600.0, wall("2026-11-25T21:00:00")
    assert hours.now((NIGHTS,)).open


def test_a_time_of_day_that_was_set_anew_is_noticed_within_a_minute() -> None:
    clocks = Clocks()
    hours = Hours(clocks)
    assert not hours.now((NIGHTS,)).open
    clocks.seconds, clocks.day = 1061.0, wall("2026-11-25T21:30:00")
    assert hours.now((NIGHTS,)).open


def test_other_windows_count_at_once() -> None:
    hours = Hours(Clocks())
    assert not hours.now((NIGHTS,)).open
    assert hours.now(()).open
