"""What a component answers itself on the replica's port."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from agent.host.host import Host
from agent.host.states import HostState


class ComponentHttp:
    """An ASGI application: the component's own while it is started, else a problem as RFC 9457 has them."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        members = self._host.members if self._host.state is HostState.STARTED else None
        application = members.component.http if members is not None else None
        if application is not None:
            await application(scope, receive, send)
        elif scope["type"] == "http":
            await _nothing_here(send)

    def __repr__(self) -> str:
        return "the component's own"


async def _nothing_here(send: Callable[[Any], Awaitable[None]]) -> None:
    said = {
        "type": "about:blank",
        "title": "NOT_FOUND",
        "status": 404,
        "code": "NOT_FOUND",
        "detail": "there is no such path",
    }
    headers = [(b"content-type", b"application/problem+json")]
    await send({"type": "http.response.start", "status": 404, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})
