"""What an instance was configured with, read by name and type."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, overload

from agent.sdk.errors import SettingsError
from agent.sdk.filling import filled
from agent.sdk.secrets import resolved

T = TypeVar("T")


class _Required:
    """Marks a setting without which the component cannot run."""


REQUIRED: Final = _Required()
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Settings(Mapping[str, Any]):
    """The settings of one component: a read-only mapping with typed access. Every error names the key."""

    def __init__(self, values: Mapping[str, Any] | None = None, name: str = "") -> None:
        self._values = dict(values or {})
        self.name = name

    def __getitem__(self, key: str) -> Any:
        try:
            return self._values[key]
        except KeyError:
            raise SettingsError(f"the setting {key!r} is missing", code="SETTING_MISSING", where=self.name) from None

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it was configured, or `default`."""
        return self._values.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:  # values may be secret
        return f"<Settings {self.name} {sorted(self._values)}>"

    @overload
    def text(self, key: str) -> str: ...
    @overload
    def text(self, key: str, default: T) -> str | T: ...
    def text(self, key: str, default: object = REQUIRED) -> object:
        """A text; numbers are spelled out."""
        found = self._find(key, default)
        if found is None:
            return default
        value = found[0]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._wrong(key, "a text")
        return str(value)

    @overload
    def integer(self, key: str) -> int: ...
    @overload
    def integer(self, key: str, default: T) -> int | T: ...
    def integer(self, key: str, default: object = REQUIRED) -> object:
        """A whole number, also when it is spelled as a text ("8192")."""
        found = self._find(key, default)
        if found is None:
            return default
        value = found[0]
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str):
            try:
                return int(value)
            except ValueError:
                raise self._wrong(key, "a whole number") from None
        raise self._wrong(key, "a whole number")

    @overload
    def number(self, key: str) -> float: ...
    @overload
    def number(self, key: str, default: T) -> float | T: ...
    def number(self, key: str, default: object = REQUIRED) -> object:
        """A finite number, also when it is spelled as a text."""
        found = self._find(key, default)
        return default if found is None else self._number(key, found[0], "a number")

    @overload
    def flag(self, key: str) -> bool: ...
    @overload
    def flag(self, key: str, default: T) -> bool | T: ...
    def flag(self, key: str, default: object = REQUIRED) -> object:
        """True or false, also as the texts true, false, yes, no, on, off, 1, 0."""
        found = self._find(key, default)
        if found is None:
            return default
        value = found[0]
        if isinstance(value, bool):
            return value
        spelled = str(value).strip().lower() if isinstance(value, str | int) else ""
        if spelled in _TRUE or spelled in _FALSE:
            return spelled in _TRUE
        raise self._wrong(key, "true or false")

    @overload
    def seconds(self, key: str) -> float: ...
    @overload
    def seconds(self, key: str, default: T) -> float | T: ...
    def seconds(self, key: str, default: object = REQUIRED) -> object:
        """A duration in seconds, not negative: a number, or a text such as `250ms`, `30s`, `5m`, `2h`, `1d`."""
        found = self._find(key, default)
        if found is None:
            return default
        value, factor = found[0], 1.0
        if isinstance(value, str):
            digits = value.strip().rstrip("abcdefghijklmnopqrstuvwxyz")
            unit = value.strip()[len(digits) :]
            if unit not in _UNITS and unit:
                raise self._wrong(key, "a duration such as 30s or 5m")
            value, factor = digits.strip(), _UNITS.get(unit, 1.0)
        duration = self._number(key, value, "a duration such as 30s or 5m") * factor
        if duration < 0:
            raise self._wrong(key, "a duration that is not negative")
        return duration

    @overload
    def path(self, key: str) -> Path: ...
    @overload
    def path(self, key: str, default: T) -> Path | T: ...
    def path(self, key: str, default: object = REQUIRED) -> object:
        """An absolute path; a leading ~ is the home folder, a relative one starts at the content root of the package."""
        found = self._find(key, default)
        if found is None:
            return default
        value = found[0]
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise self._wrong(key, "a path")
        return Path(value).expanduser().absolute()

    @overload
    def secret(self, key: str) -> str: ...
    @overload
    def secret(self, key: str, default: T) -> str | T: ...
    def secret(self, key: str, default: object = REQUIRED) -> object:
        """A text that may be named instead of written down: `env:NAME` or `file:PATH` is read on this machine."""
        text = self.text(key, default)
        return resolved(text, key, self.name) if isinstance(text, str) and text is not default else text

    @overload
    def choice(self, key: str, allowed: Sequence[str]) -> str: ...
    @overload
    def choice(self, key: str, allowed: Sequence[str], default: T) -> str | T: ...
    def choice(self, key: str, allowed: Sequence[str], default: object = REQUIRED) -> object:
        """One of the allowed texts."""
        found = self._find(key, default)
        if found is None:
            return default
        if found[0] not in allowed:
            raise self._wrong(key, f"one of {', '.join(allowed)}")
        return found[0]

    @overload
    def sequence(self, key: str) -> tuple[Any, ...]: ...
    @overload
    def sequence(self, key: str, default: T) -> tuple[Any, ...] | T: ...
    def sequence(self, key: str, default: object = REQUIRED) -> object:
        """The items of a list, as they were configured."""
        found = self._find(key, default)
        if found is None:
            return default
        if not isinstance(found[0], list | tuple):
            raise self._wrong(key, "a list")
        return tuple(found[0])

    def into(self, model: type[T]) -> T:
        """The settings as an instance of a dataclass or a pydantic model; the error names every key that does not fit.

        A field `retry_delay` of a dataclass is read from `retryDelay`; str, int, float, bool, Path, timedelta (a duration),
        Literal, lists and optional fields are converted as the methods above do, and unknown keys are refused:

            @dataclass(frozen=True)
            class Wanted:
                input_path: Path
                retry_delay: timedelta = timedelta(seconds=30)

            wanted = settings.into(Wanted)
        """
        return filled(model, self)

    def _find(self, key: str, default: object) -> tuple[Any] | None:
        if key in self._values and self._values[key] is not None:
            return (self._values[key],)
        if default is REQUIRED:
            self[key]  # says that it is missing
            raise self._wrong(key, "a value")
        return None

    def _number(self, key: str, value: Any, wanted: str) -> float:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._wrong(key, wanted)
        try:
            number = float(value)
        except ValueError:
            raise self._wrong(key, wanted) from None
        if not math.isfinite(number):
            raise self._wrong(key, wanted)
        return number

    def _wrong(self, key: str, wanted: str) -> SettingsError:
        return SettingsError(f"the setting {key!r} must be {wanted}", where=self.name)


class PublisherSettings(Settings):
    """The publisher's own settings, for a component that wants to see them."""
