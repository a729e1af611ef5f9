"""Publishes a message whenever a cron expression is due."""

from __future__ import annotations

import asyncio
import itertools
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol

import tdie_last_run as last_run
from tdie_cron import Schedule

from agent.sdk import Component, Message, MessagePublisher, Settings, SettingsError, derived_id, pauses

SLICE = 20.0  # the clock is looked at again at least so often: it may be set while we sleep
PUNCTUAL = timedelta(seconds=30)  # a run that begins later than this, or than half its period, counts as missed
MOST_COUNTED = 100_000


class Clock(Protocol):
    """Tells the time and waits."""

    def now(self) -> datetime: ...

    async def sleep(self, seconds: float) -> None: ...


class WallClock:
    """The machine's."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


WALL = WallClock()


@dataclass(frozen=True)
class Wanted:
    """The settings, as in the manifest."""

    cron_schedule: str
    time_zone: str = "UTC"
    is_reentrant: bool = False
    missed_runs: Literal["skip", "once", "all"] = "skip"
    max_missed_runs: int = 100
    type: str = "SchedulerMessage"
    content: Any = None

    def __post_init__(self) -> None:
        if self.max_missed_runs < 1:
            raise SettingsError("the setting 'maxMissedRuns' must be at least 1")


class Scheduler(Component):
    """One run for each time the expression is due; never two for the same time."""

    def __init__(
        self, settings: Settings, publisher: MessagePublisher | None, log: logging.Logger, clock: Clock = WALL
    ) -> None:
        self._wanted = settings.into(Wanted)
        self._schedule = Schedule(self._wanted.cron_schedule, self._wanted.time_zone)
        self._key = f"{self._schedule.expression} {self._schedule.zone}"
        self._publisher, self._log, self._clock = publisher, log, clock
        self._under_way: set[asyncio.Task[object]] = set()
        self._pending: set[datetime] = set()
        self._done: set[datetime] = set()
        self._recording = asyncio.Lock()

    async def start(self) -> None:
        last = await asyncio.to_thread(lambda: last_run.read(self.data_folder, self._key))
        now = self._clock.now()
        if last is None or last > now:  # first time, or the clock was set back: nothing is known to be missed
            last = now
            await self._record(now)
        self._log.info("the next run is at %s", self._schedule.after(now).isoformat())
        self.spawn(self._run(last), name="clock")

    async def _run(self, last: datetime) -> None:
        while True:
            due = self._schedule.after(last)
            while (now := self._clock.now()) < due:
                await self._clock.sleep(min(SLICE, (due - now).total_seconds()))
            late = max(timedelta(seconds=1), min(PUNCTUAL, (self._schedule.after(due) - due) / 2))
            if now - due > late:
                last = await self._catch_up(last, now - late)
                continue
            last = due
            if not self._wanted.is_reentrant and self._under_way:
                self._log.warning("the run at %s is left out: the one before is still under way", due.isoformat())
                continue
            self._begin(due, 0)

    async def _catch_up(self, last: datetime, until: datetime) -> datetime:
        """What was missed between the two is dealt with; the moment from which on nothing is."""
        every = itertools.takewhile(lambda due: due <= until, self._schedule.all_after(last))
        missed = await asyncio.to_thread(lambda: list(itertools.islice(every, MOST_COUNTED)))
        end = missed[-1]
        kept = {"skip": [], "once": missed[-1:], "all": missed[-self._wanted.max_missed_runs :]}[
            self._wanted.missed_runs
        ]
        self._log.warning("%d run(s) were missed, %d of them are made up for", len(missed), len(kept))
        if not kept:
            await self._record(end)
        before = len(missed) - len(kept)
        for due in kept:
            while self._under_way and not self._wanted.is_reentrant:
                await asyncio.wait(self._under_way)
            self._begin(due, before + 1)
            before = 0
        return end

    def _begin(self, due: datetime, missed: int) -> None:
        self._pending.add(due)
        task = self.spawn(self._fire(due, missed), name=f"run {due.isoformat()}")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _fire(self, due: datetime, missed: int) -> None:
        """Published, however long that takes, and remembered."""
        fired = self._clock.now()
        content = {
            "scheduledTime": due.isoformat(),
            "firedTime": fired.isoformat(),
            "nextTime": self._schedule.after(max(due, fired)).isoformat(),
            "missed": missed,
            **({} if self._wanted.content is None else {"content": self._wanted.content}),
        }
        self._log.info("run", extra={"scheduled": due.isoformat(), "missed": missed})
        message = Message(content, self._wanted.type, id=derived_id(self.name, self._key, due.isoformat()))
        for pause in pauses(1.0, 60.0):
            if self._publisher is None:
                break
            try:
                await self._publisher.publish(message)
            except Exception as error:  # noqa: BLE001 - whatever a publisher raises, the run is not lost
                self._log.warning("publishing failed, trying again in %.0f s: %s", pause, error)
                await self._clock.sleep(pause)
            else:
                break
        self._pending.discard(due)
        await self._record(due)

    async def _record(self, due: datetime) -> None:
        """Remember the last run before which none is pending: runs that overlap may end in any order."""
        self._done.add(due)
        async with self._recording:
            over = {done for done in self._done if not self._pending or done < min(self._pending)}
            self._done -= over
            if over:
                await asyncio.to_thread(lambda: last_run.write(self.data_folder, self._key, max(over)))
