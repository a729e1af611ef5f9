"""PUBLIC: the id that joins a request with all that follows from it, over every API, log and message.

It travels in the header X-Correlation-ID; a request without one gets one, and every answer names it. Standard library only.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from agent.sdk.message import correlation

HEADER = "X-Correlation-ID"
_RAW = HEADER.lower().encode()
_FORM = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


def current() -> str:
    """The id of what is being worked on here, a new one when there is none."""
    return correlation.get() or new()


def new() -> str:
    """An id nobody else has."""
    return uuid.uuid4().hex


class Correlated:
    """ASGI: each request is worked on under its caller's id, or one of its own, and its answer names it.

    `entered` is called with the id, for logs that keep it in a place of their own.
    """

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], *, entered: Callable[[str], object] | None = None
    ) -> None:
        self._app, self._entered = app, entered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == _RAW), b"")
        found = given.decode() if _FORM.fullmatch(given) else new()

        async def named(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != _RAW]
                message = {**message, "headers": [*headers, (_RAW, found.encode())]}
            await send(message)

        before = correlation.set(found)
        try:
            if self._entered is not None:
                self._entered(found)
            await self._app(scope, receive, named)
        finally:
            correlation.reset(before)
