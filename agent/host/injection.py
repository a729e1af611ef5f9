"""A constructor is given what its annotations name."""

from __future__ import annotations

import inspect
import logging
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.host.loading import CannotLoad
from agent.sdk.extension import Binding, Extension, InstanceId, MessagePublisher
from agent.sdk.settings import PublisherSettings, Settings

KINDS = "Settings, PublisherSettings, MessagePublisher, logging.Logger, InstanceId"


@dataclass(frozen=True, slots=True)
class Services:
    """What can be injected into one object."""

    binding: Binding
    publisher: MessagePublisher | None
    publisher_settings: PublisherSettings


def construct(found: type[Extension], services: Services, **given: object) -> Extension:
    """An object of the class, bound before its constructor runs. CannotLoad names a parameter nobody can fill.

    `given` are arguments that a test hands over itself.
    """
    wanted = {name: kind for name, kind in _wanted(found).items() if name not in given}
    arguments = {name: _service(found, name, kind, services) for name, kind in wanted.items()} | given
    made = found.__new__(found)
    made._bound = services.binding
    made.__init__(**arguments)  # type: ignore[misc]
    return made


def _wanted(found: type[Extension]) -> Mapping[str, Any]:
    """The parameters to fill, with their annotations."""
    if found.__init__ is object.__init__:
        return {}  # reading the signature of a built-in costs more than all the rest of a start
    try:
        hints = typing.get_type_hints(found.__init__)
    except (NameError, TypeError) as error:
        raise CannotLoad(
            f"{found.__name__}: an annotation cannot be read: {error}", code="PARAMETER_UNKNOWN"
        ) from error
    wanted = {}
    for parameter in list(inspect.signature(found.__init__).parameters.values())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kind = hints.get(parameter.name)
        if parameter.default is not parameter.empty and not _known(kind):
            continue
        wanted[parameter.name] = kind
    return wanted


def _parts(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return typing.get_args(kind)
    return (kind,)


def _known(kind: Any) -> bool:
    return any(
        part is InstanceId
        or (isinstance(part, type) and issubclass(part, Settings | logging.Logger | MessagePublisher))
        for part in _parts(kind)
    )


def _service(found: type[Extension], name: str, kind: Any, services: Services) -> object:
    for part in _parts(kind):
        if part is InstanceId:
            return services.binding.instance_id
        if not isinstance(part, type):
            continue
        if issubclass(part, PublisherSettings):
            return services.publisher_settings
        if issubclass(part, Settings):
            return services.binding.settings
        if issubclass(part, logging.Logger):
            return services.binding.log
        if issubclass(part, MessagePublisher):
            if services.publisher is None and types.NoneType not in _parts(kind):
                raise CannotLoad(
                    f"{found.__name__} needs a publisher and its instance names none", code="PUBLISHER_MISSING"
                )
            return services.publisher
    raise CannotLoad(
        f"{found.__name__}: nothing can be given for the parameter {name!r}",
        code="PARAMETER_UNKNOWN",
        hint=f"annotate it with one of {KINDS}, or give it a default",
    )
