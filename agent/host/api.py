"""The host's HTTP API as an application."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.callers import READING, Callers, Needs, Role, people_file
from agent.correlation import Correlated
from agent.docs_page import page
from agent.errors import Denied, TdieError, Waiting
from agent.host.agent_line import Answer
from agent.host.component_http import ComponentHttp
from agent.host.host import Host
from agent.host.metrics import METRICS, metrics_text
from agent.host.openapi import document
from agent.host.operations import BASE, Operation, operations
from agent.tokens import TokenFile

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

log = logging.getLogger("host.api")

NEEDS = Needs({f"POST {BASE}/packages": Role.ADMIN, f"PUT {BASE}/packages": Role.ADMIN})


def application(host: Host, shut_down: Callable[[], None], packages: str = "") -> Correlated:
    """The seed's paths of one host with their description, health endpoints, and what the component answers itself.

    `packages` is the socket on which its agent answers about packages.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse
    from starlette.routing import Mount, Route

    guard = Guard(host.order.env)
    all_of_them = operations(host, shut_down, packages)

    def route(operation: Operation) -> Route:
        async def answer(request: Request) -> Response:
            try:
                guard.check(request)
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
                guard.check(request)
            except TdieError as error:
                return _problem(error.status, error.code, error.detail, error.hint)
            return show()

        return answer

    def said() -> dict[str, Any]:
        return document(all_of_them, NEEDS, secured=guard.secured)

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
    """Admits callers by the token and people files that are named in the host's environment; no file lets everybody in.

    A file that is not as it must be lets nobody in.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.callers = Callers()
        self.wrong: TdieError | None = None
        token, people = (environ.get(f"TDIE_API_{name}_FILE", "") for name in ("TOKEN", "PEOPLE"))
        self.secured = bool(token or people)
        try:
            found = TokenFile(Path(token)) if token else str
            self.callers = Callers(found, people_file(Path(people))) if people else Callers(found)
        except TdieError as error:
            log.error("nobody may call this host: %s", error)
            self.wrong = error

    def check(self, request: Request) -> None:
        """Raises Unauthorized, RoleTooLow, or what is wrong with a file; says who changes something."""
        if self.wrong is not None:
            raise Waiting(self.wrong.detail, code=self.wrong.code)
        method, path = request.method, request.url.path
        try:
            caller = self.callers.admit(request.headers.get("authorization", ""), NEEDS.role(method, path))
        except Denied as error:
            log.warning("refused %s %s: %s", method, path[:200], error)
            raise
        request.state.caller = caller
        if method not in READING and caller.role is not Role.CLUSTER:
            log.info("%s (%s) calls %s %s", caller.name, caller.role, method, path[:200])


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
