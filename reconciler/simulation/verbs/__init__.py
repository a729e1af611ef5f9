"""What a script can say, by what it is about. Each room is a class that knows its verbs: a pattern of a line, and what it does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

Verbs = tuple[tuple[str, Callable[..., Awaitable[str | None]]], ...]
