"""The host's HTTP API as an application."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.correlation import Correlated
from agent.docs_page import page
from agent.errors import Denied, TdieError, Waiting
from agent.host.agent_line import Answer
from agent.host.component_http import ComponentHttp
from agent.host.host import Host
from agent.host.metrics import METRICS, metrics_text
from agent.host.openapi import document
from agent.host.operations import BASE, Operation, operations
from agent.tokens import TokenFile, same

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

log = logging.getLogger("host.api")


def application(host: Host, shut_down: Callable[[], None], packages: str = "") -> Correlated:
    """The seed's paths of one host with their description, health endpoints, and what the component answers itself.

    `packages` is the socket on which its agent answers about packages.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
    from starlette.routing import Mount, Route

    guard = Guard(host.order.env.get("TDIE_API_TOKEN_FILE", ""))
    all_of_them = operations(host, shut_down, packages)

    def route(operation: Operation) -> Route:
        async def answer(request: Request) -> Response:
            try:
                guard.check(request.headers.get("authorization", ""))
                found = await operation.handle(request)
            except TdieError as error:
                return _problem(error.status, error.code, error.detail, error.hint)
            except Exception:
                log.exception("unexpected error at %s", request.url.path)
                return _problem(500, "INTERNAL", "something went wrong here; the log has the details")
            return _passed_on(found) if isinstance(found, Answer) else JSONResponse(found, operation.status)

        return Route(operation.path, answer, methods=[operation.method])

    def guarded(show: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                guard.check(request.headers.get("authorization", ""))
            except TdieError as error:
                return _problem(error.status, error.code, error.detail)
            return show()

        return answer

    def said() -> dict[str, Any]:
        return document(all_of_them, secured=guard.secured)

    async def live(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    async def ready(_request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"{host.state}\n", 200 if host.status()["healthy"] else 503)

    async def refused(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "BAD_REQUEST")
        return _problem(error.status_code, code, str(error.detail), headers=error.headers)

    return Correlated(
        Starlette(
            routes=[
                Mount(BASE, routes=[*map(route, all_of_them)]),
                Route("/openapi.json", guarded(lambda: JSONResponse(said()))),
                Route("/docs", guarded(lambda: HTMLResponse(page(said())))),
                Route("/metrics", guarded(lambda: PlainTextResponse(metrics_text(host), media_type=METRICS))),
                Route("/livez", live),
                Route("/readyz", ready),
                Mount("", ComponentHttp(host)),
            ],
            exception_handlers={HTTPException: refused},
        )
    )


class Guard:
    """Asks for the token in a file, if there is one; a file that is not as it must be lets nobody in."""

    def __init__(self, path: str) -> None:
        self._token: Callable[[], str] | None = None
        self.wrong: TdieError | None = None
        self.secured = bool(path)
        try:
            self._token = TokenFile(Path(path)) if path else None
        except TdieError as error:
            log.error("nobody may call this host: %s", error)
            self.wrong = error

    def check(self, header: str) -> None:
        """Raises Unauthorized, or what is wrong with the file."""
        if self.wrong is not None:
            raise Waiting(self.wrong.detail, code=self.wrong.code)
        scheme, _, shown = header.partition(" ")
        if self._token is not None and not (scheme.lower() == "bearer" and same(shown.strip(), self._token())):
            raise Unauthorized("a bearer token is needed")


class Unauthorized(Denied):
    """No token, or a wrong one."""

    code = "UNAUTHORIZED"
    status = 401


def _problem(
    status: int, code: str, detail: str, hint: str = "", headers: Mapping[str, str] | None = None
) -> JSONResponse:
    from starlette.responses import JSONResponse

    body = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": detail}
    more = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse(
        body | ({"hint": hint} if hint else {}), status, {**more, **(headers or {})}, "application/problem+json"
    )


def _passed_on(answer: Answer) -> Response:
    from starlette.responses import Response

    return Response(answer.body, answer.status, media_type=answer.media_type)
