"""When a cron expression is due: 5 fields, 6 with seconds first, Quartz's `?`, and the usual macros."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from agent.sdk import SettingsError

MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
FIELDS = (("second", 59), ("minute", 59), ("hour", 23), ("day of month", 31), ("month", 12), ("day of week", 7))
YEARS_AHEAD = 30


class Schedule:
    """A cron expression in a time zone. A time that a clock change leaves out or repeats is due once, as in Debian's cron."""

    def __init__(self, expression: str, zone: str = "UTC") -> None:
        """SettingsError says which field is wrong, that it is never due, or that the zone is not known."""
        self.expression, self.zone = " ".join(expression.split()), zone
        try:
            self._zone = ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise SettingsError(f"'timeZone' {zone!r} is not known here", hint="such as Europe/Berlin") from error
        self._fields = _normal(self.expression)
        try:
            self.after(datetime(2024, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise _wrong(self.expression, str(error)) from error

    def after(self, moment: datetime) -> datetime:
        """The first time after the moment at which it is due, in UTC."""
        return next(self.all_after(moment))

    def all_after(self, moment: datetime) -> Iterator[datetime]:
        """Every time after the moment at which it is due, in UTC, without end."""
        found: Iterator[datetime] = CronSim(self._fields, moment.astimezone(self._zone))
        for due in found:
            yield due.astimezone(UTC)
        raise _wrong(self.expression, "it is never due")


def _normal(expression: str) -> str:
    """Five fields, or six with seconds first, of ordinary cron."""
    fields = MACROS.get(expression, expression).upper().split()
    if expression.startswith("@") and expression not in MACROS:
        raise _wrong(expression, f"the macros are {', '.join(MACROS)}")
    if len(fields) == 7:
        raise _wrong(expression, "a year field (the seventh) is not supported")
    if len(fields) not in (5, 6):
        raise _wrong(expression, f"it has {len(fields)} fields; 5 are needed, or 6 with seconds first")
    names = FIELDS[6 - len(fields) :]
    for field, (name, highest) in zip(fields, names, strict=True):
        for step in re.findall(r"/(\d+)", field):
            if not 0 < int(step) <= highest:
                raise _wrong(expression, f"the step /{step} of the {name} is out of range")
    _check_question_marks(expression, fields)
    plain = ["*" if field == "?" else field for field in fields]
    return " ".join(plain[1:] if len(plain) == 6 and plain[0] == "0" else plain)  # 5 fields mind clock changes


def _check_question_marks(expression: str, fields: list[str]) -> None:
    day, weekday = fields[-3], fields[-1]
    if any("?" in field for field in [*fields[:-3], fields[-2]]) or any("?" in f and f != "?" for f in (day, weekday)):
        raise _wrong(expression, "? stands alone, as day of month or day of week")
    if day == "?" and re.search(r"(?<![#/\d])\d", re.sub(r"[#/]\d+", "", weekday)):
        raise _wrong(
            expression,
            "beside ? a number as day of week is 1 = Sunday in Quartz and 1 = Monday in cron: write its name",
        )


def _wrong(expression: str, why: str) -> SettingsError:
    return SettingsError(f"'cronSchedule' {expression!r}: {why}", code="CRON_INVALID")
