"""Pure: times of day at which commits may be carried out, and whether a moment lies in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

_SEARCH = 3  # starts looked at in each direction: longer windows than their schedule's period overlap


@dataclass(frozen=True, slots=True)
class SyncWindow:
    """From each start of `schedule` (five cron fields, local time of `zone`) for `duration` seconds."""

    schedule: str
    duration: float
    zone: str = "UTC"
    kind: Literal["allow", "deny"] = "allow"


@dataclass(frozen=True, slots=True)
class Moment:
    """Whether commits may be carried out now. `changes_in` is seconds until that may be otherwise; None: never."""

    open: bool = True
    detail: str = ""
    changes_in: float | None = None


def check_schedule(schedule: str, zone: str) -> None:
    """Returns when both make sense; ValueError says what does not."""
    try:
        found = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"'{zone}' is not a time zone such as Europe/Berlin") from None
    if len(schedule.split()) != 5:
        raise ValueError(f"'{schedule}' does not have the five fields minute hour day month weekday")
    try:
        next(CronSim(schedule, datetime(2026, 1, 1, tzinfo=found)))
    except CronSimError as error:
        raise ValueError(f"'{schedule}': {str(error).lower()}") from None
    except StopIteration:
        raise ValueError(f"'{schedule}' never comes") from None


def at(windows: Iterable[SyncWindow], wall: datetime) -> Moment:
    """Closed inside a window that denies; else, when there are windows that allow, open only inside one of them."""
    allow = [window for window in windows if window.kind == "allow"]
    deny = [window for window in windows if window.kind == "deny"]
    borders = [border for window in (*allow, *deny) if (border := _next_border(window, wall)) is not None]
    changes_in = max(0.001, (min(borders) - wall).total_seconds()) if borders else None
    closed_by = [window for window in deny if _covers(window, wall)]
    if closed_by:
        return Moment(False, f"sync.windows denies it: {_spelled(closed_by[0])}", changes_in)
    if allow and not any(_covers(window, wall) for window in allow):
        return Moment(False, f"outside of sync.windows: {', '.join(map(_spelled, allow[:3]))}", changes_in)
    return Moment(True, "", changes_in)


def _covers(window: SyncWindow, wall: datetime) -> bool:
    return any(start <= wall < start + timedelta(seconds=window.duration) for start in _starts_before(window, wall))


def _next_border(window: SyncWindow, wall: datetime) -> datetime | None:
    """When the window begins or ends next, in UTC."""
    length = timedelta(seconds=window.duration)
    ends = [start + length for start in _starts_before(window, wall) if start + length > wall]
    return min((*ends, *_starts(window, wall, reverse=False)), default=None)


def _starts_before(window: SyncWindow, wall: datetime) -> list[datetime]:
    """The latest starts that are not after this moment."""
    return _starts(window, wall + timedelta(seconds=1), reverse=True)


def _starts(window: SyncWindow, wall: datetime, *, reverse: bool) -> list[datetime]:
    local = wall.astimezone(ZoneInfo(window.zone))
    found: list[datetime] = []
    for start in CronSim(window.schedule, local, reverse=reverse):
        found.append(start.astimezone(UTC))
        if len(found) == (_SEARCH if reverse else 1):
            break
    return found


def _spelled(window: SyncWindow) -> str:
    return f"{window.schedule} for {timedelta(seconds=window.duration)} ({window.zone})"
