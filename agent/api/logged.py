"""Log lines of a request carry its correlation id."""

from __future__ import annotations

import structlog


def logged_as(correlation_id: str) -> None:
    """What this task and its children log from now on names the id."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(correlation_id=correlation_id)
