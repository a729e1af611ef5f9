"""Log lines of agent and controller: JSON for machines, readable on a terminal, and never a secret."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog

_SECRET_KEYS = re.compile(r"token|password|secret|authorization|api_?key", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"(?i)\b(bearer\s+|token[=:]\s*|password[=:]\s*|//[^/\s:@]+:)[^\s,;'\"@]+")
HIDDEN = "[hidden]"


def redacted(text: str) -> str:
    """The text without what looks like a secret."""
    return _SECRET_TEXT.sub(lambda match: match.group(1) + HIDDEN, text)


def set_up(level: str = "info", form: Literal["auto", "json", "text"] = "auto", stream: TextIO | None = None) -> None:
    """Logs go to `stream` (standard error) from now on; `auto` is text on a terminal and JSON elsewhere."""
    out = stream or sys.stderr
    as_text = form == "text" or (form == "auto" and out.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info if not as_text else _keep,
        _hide_secrets,
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=out.isatty())
        if as_text
        else structlog.processors.JSONRenderer(default=str)
    )
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    structlog.configure(
        processors=[_named, *shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_Named(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))  # libraries only speak up when something is wrong


class _Named(structlog.PrintLoggerFactory):
    """Makes print loggers that remember the name they were asked for."""

    def __call__(self, *args: Any) -> Any:
        logger: Any = super().__call__()
        logger.name = args[0] if args else ""
        return logger


def _named(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if name := getattr(logger, "name", ""):
        event["logger"] = name
    return event


def _keep(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return event


def _hide_secrets(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if _SECRET_KEYS.search(key):
            event[key] = HIDDEN
        elif isinstance(value, str):
            event[key] = redacted(value)
    return event
