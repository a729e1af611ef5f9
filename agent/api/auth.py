"""Who may call an API: a bearer token from a 0600 file, and limits that hold before anything is parsed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent.api.problems import problem
from agent.tokens import same

OPEN_PATHS = frozenset({"/livez", "/readyz"})


class BearerAuth:
    """ASGI: every request but those to open paths shows the token. An empty token lets everybody in (loopback only).

    `also` is a second token that is accepted beside the first; an empty one is not.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: Callable[[], str],
        also: Callable[[], str] = str,
        open_paths: frozenset[str] = OPEN_PATHS,
    ) -> None:
        self._app = app
        self._token = token
        self._also = also
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open or self._known(scope):
            await self._app(scope, receive, send)
            return
        answer = problem(401, "UNAUTHORIZED", "a bearer token is needed", headers={"WWW-Authenticate": "Bearer"})
        await answer(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        token = self._token()
        scheme, _, shown = Headers(scope=scope).get("authorization", "").partition(" ")
        if not token:
            return True
        known = [other for other in (token, self._also()) if other]
        equal = [same(shown.strip(), other) for other in known]  # all of them, so that the time tells nothing
        return scheme.lower() == "bearer" and any(equal)


class BodyLimit:
    """ASGI: a body beyond the limit is refused while it is read, whatever its headers say."""

    def __init__(self, app: ASGIApp, *, limit: int, uploads: Mapping[str, int] | None = None) -> None:
        """`limit` in bytes; `uploads` has the limits of paths that take more."""
        self._app = app
        self._limit = limit
        self._uploads = uploads or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._uploads.get(scope["path"], self._limit)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            await self._refuse(limit, scope, receive, send)
            return
        seen, too_large, answered = 0, False, False

        async def limited() -> Message:
            nonlocal seen, too_large
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                too_large = True
                return {"type": "http.disconnect"}
            return message

        async def guarded(message: Message) -> None:
            nonlocal answered
            if too_large and not answered:
                return  # the app answers a broken request; the caller is told the reason below
            answered = True
            await send(message)

        try:
            await self._app(scope, limited, guarded)
        finally:
            if too_large and not answered:
                await self._refuse(limit, scope, receive, send)

    async def _refuse(self, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        answer = problem(413, "BODY_TOO_LARGE", f"at most {limit} bytes are read", headers={"Connection": "close"})
        await answer(scope, receive, send)
