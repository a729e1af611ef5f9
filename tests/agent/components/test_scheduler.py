"""The scheduler on a virtual clock: when it is due, what overlaps, what was missed."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.components import folder
from agent.sdk import Message, MessagePublisher, SettingsError
from agent.sdk.testing import Running, running

START = datetime(2026, 11, 25, 12, 0, 30, tzinfo=UTC)  # a Wednesday


class Virtual:
    """Time passes only when the test says so; everything that waits is woken at its moment."""

    def __init__(self, start: datetime = START) -> None:
        self._now = start
        self._sleepers: list[tuple[datetime, int, asyncio.Event]] = []
        self._numbers = itertools.count()

    def now(self) -> datetime:
        return self._now

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        heapq.heappush(self._sleepers, (self._now + timedelta(seconds=seconds), next(self._numbers), woken))
        await woken.wait()

    async def _settled(self) -> None:
        """Somebody sleeps, and what was woken has gone as far as it can."""
        for _ in range(40):
            await asyncio.sleep(0.0005)

    async def pass_(self, **duration: float) -> None:
        until = self._now + timedelta(**duration)
        await self._settled()
        while self._sleepers and self._sleepers[0][0] <= until:
            at, _, woken = heapq.heappop(self._sleepers)
            self._now = max(self._now, at)
            woken.set()
            await self._settled()
        self._now = until
        await self._settled()

    def jump(self, **duration: float) -> None:
        """The machine was suspended: time passed and nobody was woken."""
        self._now += timedelta(**duration)


def source(name: str = "tdie_cron") -> Any:
    if name not in sys.modules:
        sys.path.insert(0, str(folder("scheduler") / "content"))
        __import__(name)
    return sys.modules[name]


@pytest.fixture(autouse=True)
def _whole_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual clock is not set while somebody sleeps, and what belongs in a thread is done at once: on a busy machine nobody
    knows how much virtual time would pass meanwhile."""

    async def at_once(work: Callable[..., Any], *given: Any) -> Any:
        await asyncio.sleep(0)
        return work(*given)

    monkeypatch.setattr(source("tdie_scheduler"), "SLICE", 1e6)
    monkeypatch.setattr(asyncio, "to_thread", at_once)


@asynccontextmanager
async def scheduling(clock: Virtual, data: Path | None = None, **settings: Any) -> AsyncIterator[Running]:
    async with running(folder("scheduler"), settings, name="s.0", data=data, clock=clock) as run:
        yield run


def times(run: Running) -> list[str]:
    return [message.content["scheduledTime"][11:19] for message in run.published]


def due(expression: str, zone: str = "UTC", start: str = "2026-01-01T00:00:00", count: int = 3) -> list[str]:
    schedule = source().Schedule(expression, zone)
    moments = schedule.all_after(datetime.fromisoformat(start).replace(tzinfo=UTC))
    return [moment.isoformat()[:19] for moment in itertools.islice(moments, count)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("*/20 * * * *", ["2026-01-01T00:20:00", "2026-01-01T00:40:00", "2026-01-01T01:00:00"]),
        ("0 */5 * * * ?", ["2026-01-01T00:05:00", "2026-01-01T00:10:00", "2026-01-01T00:15:00"]),  # the seed's example
        ("15,45 * * * * *", ["2026-01-01T00:00:15", "2026-01-01T00:00:45", "2026-01-01T00:01:15"]),
        ("0 0 12 ? * MON-FRI", ["2026-01-01T12:00:00", "2026-01-02T12:00:00", "2026-01-05T12:00:00"]),
        ("0 0 12 ? * FRI#2", ["2026-01-09T12:00:00", "2026-02-13T12:00:00", "2026-03-13T12:00:00"]),
        ("0 0 L * ?", ["2026-01-31T00:00:00", "2026-02-28T00:00:00", "2026-03-31T00:00:00"]),
        ("30 2 * * 0", ["2026-01-04T02:30:00", "2026-01-11T02:30:00", "2026-01-18T02:30:00"]),
        ("@hourly", ["2026-01-01T01:00:00", "2026-01-01T02:00:00", "2026-01-01T03:00:00"]),
        ("@daily", ["2026-01-02T00:00:00", "2026-01-03T00:00:00", "2026-01-04T00:00:00"]),
        ("@weekly", ["2026-01-04T00:00:00", "2026-01-11T00:00:00", "2026-01-18T00:00:00"]),
        ("@monthly", ["2026-02-01T00:00:00", "2026-03-01T00:00:00", "2026-04-01T00:00:00"]),
        ("@yearly", ["2027-01-01T00:00:00", "2028-01-01T00:00:00", "2029-01-01T00:00:00"]),
    ],
)
def test_when_it_is_due(expression: str, expected: list[str]) -> None:
    assert due(expression) == expected


@pytest.mark.parametrize("expression", ["30 2 * * *", "0 30 2 * * ?"])
def test_clock_changes_leave_nothing_out_and_repeat_nothing(expression: str) -> None:
    spring = due(expression, "Europe/Berlin", "2026-03-27T12:00:00", 3)
    assert spring == ["2026-03-28T01:30:00", "2026-03-29T01:00:00", "2026-03-30T00:30:00"]  # 03:00 instead of 02:30
    autumn = due(expression, "Europe/Berlin", "2026-10-24T12:00:00", 2)
    assert autumn == ["2026-10-25T00:30:00", "2026-10-26T01:30:00"]  # once in the hour that comes twice


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("0 0 12 * * ? 2027", "a year field"),
        ("* * * *", "it has 4 fields"),
        ("", "it has 0 fields"),
        ("61 * * * *", "Bad minute"),
        ("*/61 * * * *", "the step /61 of the minute"),
        ("*/0 * * * *", "the step /0"),
        ("* * 32 * *", "Bad day-of-month"),
        ("0 0 30 2 *", "Bad day-of-month"),
        ("@reboot", "the macros are @hourly, @daily, @weekly, @monthly, @yearly"),
        ("? * * * *", r"\? stands alone, as day of month or day of week"),
        ("0 0 ?/2 * *", r"\? stands alone"),
        ("0 0 12 ? * 2", "1 = Sunday in Quartz and 1 = Monday in cron"),
        ("0 0 12 ? * MON,3", "1 = Sunday in Quartz"),
        ("x * * * *", "Bad minute"),
    ],
)
def test_a_wrong_expression_is_named(expression: str, why: str) -> None:
    with pytest.raises(SettingsError, match=rf"CRON_INVALID 'cronSchedule' .*{why}"):
        source().Schedule(expression)


async def test_wrong_settings_fail_the_start() -> None:
    for settings, why in (
        ({}, "'cronSchedule' is missing"),
        ({"cronSchedule": "@daily", "timeZone": "Mars/Olympus"}, "Mars/Olympus"),
        ({"cronSchedule": "@daily", "missedRuns": "some"}, "'missedRuns' must be one of skip, once, all"),
        ({"cronSchedule": "@daily", "maxMissedRuns": 0}, "'maxMissedRuns' must be at least 1"),
    ):
        with pytest.raises(SettingsError, match=why):
            async with scheduling(Virtual(), **settings):
                pass


async def test_each_due_time_is_one_message() -> None:
    clock = Virtual()
    async with scheduling(clock, cronSchedule="* * * * *", content={"job": 7}, type="Tick") as run:
        await clock.pass_(seconds=29)
        assert times(run) == []
        await clock.pass_(seconds=1)
        assert times(run) == ["12:01:00"]
        await clock.pass_(minutes=3)
        assert times(run) == ["12:01:00", "12:02:00", "12:03:00", "12:04:00"]
    first = run.published[0]
    assert first.type == "Tick"
    assert first.content == {
        "scheduledTime": "2026-11-25T12:01:00+00:00",
        "firedTime": "2026-11-25T12:01:00+00:00",
        "nextTime": "2026-11-25T12:02:00+00:00",
        "missed": 0,
        "content": {"job": 7},
    }
    assert len({message.id for message in run.published}) == 4


async def test_a_failed_publish_is_tried_again_with_the_same_id() -> None:
    clock = Virtual()
    async with scheduling(clock, cronSchedule="0 * * * *") as run:
        run.publisher.refuse(OSError("away"), times=3)
        await clock.pass_(minutes=59, seconds=30)
        assert times(run) == []
        await clock.pass_(minutes=1)
        assert times(run) == ["13:00:00"]


class Slow(MessagePublisher):
    """Takes its time for each message."""

    def __init__(self, clock: Virtual, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self.begun: list[str] = []

    async def start(self) -> None: ...

    async def publish(self, message: Message) -> None:
        self.begun.append(message.content["scheduledTime"][14:19])
        await self._clock.sleep(self._seconds)


@pytest.mark.parametrize(
    ("reentrant", "expected"), [(True, ["01:00", "02:00", "03:00", "04:00"]), (False, ["01:00", "03:00"])]
)
async def test_runs_overlap_only_when_they_may(reentrant: bool, expected: list[str]) -> None:
    clock = Virtual()
    slow = Slow(clock, 90)
    settings = {"cronSchedule": "* * * * *", "isReentrant": reentrant}
    async with running(folder("scheduler"), settings, clock=clock, publisher=slow):
        await clock.pass_(minutes=4)
    assert slow.begun == expected


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({"missedRuns": "skip"}, [("16:00:00", 0)]),
        ({"missedRuns": "once"}, [("15:00:00", 3), ("16:00:00", 0)]),
        ({"missedRuns": "all"}, [("13:00:00", 1), ("14:00:00", 1), ("15:00:00", 1), ("16:00:00", 0)]),
        ({"missedRuns": "all", "maxMissedRuns": 2}, [("14:00:00", 2), ("15:00:00", 1), ("16:00:00", 0)]),
    ],
)
@pytest.mark.parametrize("how", ["stopped", "suspended"])
async def test_missed_runs(policy: dict[str, Any], expected: list[tuple[str, int]], how: str, tmp_path: Path) -> None:
    clock = Virtual()
    settings = {"cronSchedule": "0 * * * *", **policy}
    if how == "stopped":
        async with scheduling(clock, tmp_path, **settings):
            await clock.pass_(minutes=1)
        clock = Virtual(START + timedelta(hours=3, minutes=10))
    async with scheduling(clock, tmp_path, **settings) as run:
        if how == "suspended":
            await clock.pass_(minutes=1)
            clock.jump(hours=3, minutes=9)
        await clock.pass_(hours=1)
        seen = [(message.content["scheduledTime"][11:19], message.content["missed"]) for message in run.published]
    assert seen == expected


async def test_a_short_restart_loses_no_run(tmp_path: Path) -> None:
    clock = Virtual()
    async with scheduling(clock, tmp_path, cronSchedule="0 * * * *"):
        await clock.pass_(minutes=59)
    clock = Virtual(START + timedelta(minutes=59, seconds=40))  # ten seconds after it was due
    async with scheduling(clock, tmp_path, cronSchedule="0 * * * *") as run:
        await clock.pass_(seconds=1)
        assert times(run) == ["13:00:00"]


async def test_another_schedule_begins_anew(tmp_path: Path) -> None:
    clock = Virtual()
    async with scheduling(clock, tmp_path, cronSchedule="0 * * * *"):
        await clock.pass_(minutes=1)
    clock = Virtual(START + timedelta(hours=5))
    async with scheduling(clock, tmp_path, cronSchedule="30 * * * *", missedRuns="all") as run:
        await clock.pass_(seconds=5)
        assert times(run) == []


async def test_a_broken_memory_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "last-run.json").write_text("{")
    with pytest.raises(OSError, match="makes no sense"):
        async with scheduling(Virtual(), tmp_path, cronSchedule="@daily"):
            pass


async def test_a_pending_run_is_not_forgotten_when_a_later_one_is_done(tmp_path: Path) -> None:
    clock = Virtual()
    remembered = source("tdie_last_run")
    async with scheduling(clock, tmp_path, cronSchedule="* * * * *", isReentrant=True) as run:
        run.publisher.refuse(OSError("away"), times=1)  # the first waits; the pauses of its publisher are virtual too
        clock_sleep, waiting = clock.sleep, asyncio.Event()

        async def sleep(seconds: float) -> None:
            if seconds < 1.5 and times(run) == []:
                await waiting.wait()
            await clock_sleep(seconds)

        clock.sleep = sleep  # type: ignore[method-assign]  # holds the first run up
        await clock.pass_(minutes=2)
        assert times(run) == ["12:02:00"]
        assert remembered.read(tmp_path, "* * * * * UTC") == START
        waiting.set()
        await clock.pass_(seconds=5)
        assert remembered.read(tmp_path, "* * * * * UTC").minute == 2
