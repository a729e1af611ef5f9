"""Who may call an API, and limits that hold before anything is parsed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.api.problems import problem
from agent.callers import READING, Caller, Callers, Needs, Role
from agent.errors import Denied

log = structlog.get_logger("api")

BODY_WITHIN = 30.0  # seconds; of an upload ten times as long
OPEN_PATHS = frozenset({"/livez", "/readyz"})


class BearerAuth:
    """ASGI: every request but those to open paths is admitted before anything of it is parsed; refusals and changes are logged."""

    def __init__(
        self, app: ASGIApp, *, callers: Callers, needs: Needs, open_paths: frozenset[str] = OPEN_PATHS
    ) -> None:
        self._app, self._callers, self._needs, self._open = app, callers, needs, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        try:
            shown = Headers(scope=scope).get("authorization", "")
            caller = self._callers.admit(shown, self._needs.role(method, path))
        except Denied as error:
            log.warning(
                "refused", code=error.code, what=f"{method} {path[:200]}", why=error.detail, client=_address(scope)
            )
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            answer = problem(error.status, error.code, error.detail, headers=headers, hint=error.hint)
            await answer(scope, receive, send)
            return
        audited = method not in READING and caller.role is not Role.CLUSTER
        await self._app(scope, receive, _audited(send, caller, f"{method} {path[:200]}") if audited else send)


def _audited(send: Send, caller: Caller, what: str) -> Send:
    """Says what a person has changed, or tried to."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            log.info("called", who=caller.name, role=str(caller.role), what=what, status=message["status"])
        await send(message)

    return sending


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


class BodyLimit:
    """ASGI: a body beyond the limit is refused while it is read, whatever its headers say; so is one that does not arrive."""

    def __init__(
        self, app: ASGIApp, *, limit: int, uploads: Mapping[str, int] | None = None, within: float = BODY_WITHIN
    ) -> None:
        """`limit` in bytes; `uploads` has the limits of paths that take more, and ten times as long as `within` seconds."""
        self._app = app
        self._limit = limit
        self._uploads = uploads or {}
        self._within = within

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._uploads.get(scope["path"], self._limit)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            await _too_large(limit)(scope, receive, send)
            return
        within = self._within * (10 if scope["path"] in self._uploads else 1)
        clock = asyncio.get_running_loop()
        until: float | None = 0.0  # counted from the first look; None once all of it is here
        seen, answered = 0, False
        wrong: Response | None = None

        async def limited() -> Message:
            nonlocal seen, until, wrong
            until = clock.time() + within if until == 0.0 else until
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                wrong = _closing(408, "BODY_TOO_SLOW", f"a body arrives within {within:g} s")
                return {"type": "http.disconnect"}
            seen += len(message.get("body", b""))
            if seen > limit:
                wrong = _too_large(limit)
                return {"type": "http.disconnect"}
            if not message.get("more_body", False):
                until = None
            return message

        async def guarded(message: Message) -> None:
            nonlocal answered
            if wrong is not None and not answered:
                return  # the app answers a broken request; the caller is told the reason below
            answered = True
            await send(message)

        try:
            await self._app(scope, limited, guarded)
        finally:
            if wrong is not None and not answered:
                await wrong(scope, receive, send)


def _too_large(limit: int) -> Response:
    return _closing(413, "BODY_TOO_LARGE", f"at most {limit} bytes are read")


def _closing(status: int, code: str, detail: str) -> Response:
    return problem(status, code, detail, headers={"Connection": "close"})
