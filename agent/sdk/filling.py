"""Settings as a model of the author's choice: a dataclass (standard library only) or a pydantic model."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agent.sdk.errors import SettingsError

if TYPE_CHECKING:
    from agent.sdk.settings import Settings

T = TypeVar("T")


def filled(model: type[T], settings: Settings) -> T:
    """The settings as a `model`; SettingsError names every key that does not fit. TypeError when it is no model."""
    if dataclasses.is_dataclass(model):
        return _dataclass(model, settings)
    validate = getattr(model, "model_validate", None)
    if validate is None:
        raise TypeError(f"{model.__name__} is neither a dataclass nor a pydantic model")
    try:
        fitted: T = validate(dict(settings))
    except ValueError as error:
        listed = getattr(error, "errors", None)
        if listed is None:
            raise SettingsError(str(error), where=settings.name) from error
        found = listed(include_url=False, include_input=False)
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in found)
        raise SettingsError(wrong, where=settings.name) from error
    return fitted


def camel(name: str) -> str:
    """`retry_delay` as it is spelled in YAML: `retryDelay`."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _dataclass(model: type[T], settings: Settings) -> T:
    hints = typing.get_type_hints(model)
    fields = {field.name: field for field in dataclasses.fields(model) if field.init}  # type: ignore[arg-type]  # is one
    keys = {name: name if name in settings else camel(name) for name in fields}
    wrong = [f"the setting {key!r} is not known" for key in settings if key not in keys.values()]
    given: dict[str, Any] = {}
    for name, field in fields.items():
        try:
            if settings.get(keys[name]) is not None:
                given[name] = _read(settings, keys[name], hints[name])
            elif keys[name] in settings and _optional(hints[name]):
                given[name] = None
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                settings.text(keys[name])  # says that it is missing
        except SettingsError as error:
            wrong.append(error.detail)
    if wrong:
        raise SettingsError("; ".join(wrong), where=settings.name)
    try:
        return model(**given)
    except ValueError as error:  # what the author's own __post_init__ found
        raise SettingsError(str(error), where=settings.name) from error


_READERS: Mapping[type, Callable[[Settings, str], object]] = {
    str: lambda settings, key: settings.text(key),
    int: lambda settings, key: settings.integer(key),
    float: lambda settings, key: settings.number(key),
    bool: lambda settings, key: settings.flag(key),
    Path: lambda settings, key: settings.path(key),
    timedelta: lambda settings, key: timedelta(seconds=settings.seconds(key)),
}


def _read(settings: Settings, key: str, kind: Any) -> object:
    kinds = [part for part in _parts(kind) if part is not types.NoneType]
    if len(kinds) != 1:
        return settings[key]  # a choice of kinds is the author's own to judge
    origin, arguments = typing.get_origin(kinds[0]) or kinds[0], typing.get_args(kinds[0])
    if origin in (list, tuple):
        item = arguments[0] if arguments else Any
        return origin(_item(settings, key, number, value, item) for number, value in enumerate(settings.sequence(key)))
    if origin is typing.Literal:
        value = settings.text(key)
        if value not in arguments:
            raise SettingsError(f"the setting {key!r} must be one of {', '.join(map(str, arguments))}")
        return value
    reader = _READERS.get(origin)
    return settings[key] if reader is None else reader(settings, key)


def _item(settings: Settings, key: str, number: int, value: object, kind: Any) -> object:
    """One item of a list, read as if it were a setting of its own named `key[number]`."""
    name = f"{key}[{number}]"
    return _read(type(settings)({name: value}, settings.name), name, kind)


def _parts(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _optional(kind: Any) -> bool:
    return types.NoneType in _parts(kind)
