"""The HTTP side: declared routes, limits, and problems as RFC 9457 has them."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from agent.sdk import Component, Message, MessagePublisher, Settings, SettingsError, derived_id

METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
DEEPEST = 64  # levels of a JSON body
_PATH = re.compile(r"/([A-Za-z0-9._~-]+|\{[A-Za-z_][A-Za-z0-9_]*\})?(/([A-Za-z0-9._~-]+|\{[A-Za-z_][A-Za-z0-9_]*\}))*")
_CORRELATION = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True)
class Limits:
    """What one replica takes on. Bytes, requests, seconds."""

    body: int
    per_second: float  # 0: no limit
    burst: int  # 0: as many as come in one second
    at_once: int
    publish: float
    read: float


@dataclass(frozen=True)
class Declared:
    """One route: requests there become messages of this type."""

    path: str
    method: str
    type: str


class Bucket:
    """Whether another request may come now; `rate` a second on the average, `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._size = rate, float(max(1, burst or round(rate)))
        self._left, self._at = self._size, 0.0

    def wait(self, now: float) -> float:
        """0 when it may, else the seconds until one may."""
        if self._rate <= 0:
            return 0.0
        self._left = min(self._size, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self._rate


class Problem(Exception):
    """Becomes an answer of type application/problem+json."""

    def __init__(self, status: int, code: str, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail = status, code, detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def routes(settings: Settings) -> tuple[Declared, ...]:
    """The declared routes; SettingsError names the one that makes no sense, or two that are the same."""
    found: list[Declared] = []
    for number, raw in enumerate(settings.sequence("routes")):
        where = f"routes[{number}]"
        if not isinstance(raw, dict) or set(raw) - {"path", "method", "type"}:
            raise SettingsError(f"the setting '{where}' is no mapping of path, method and type", where=settings.name)
        route = Settings(raw, f"{settings.name} {where}")
        path, method = route.text("path"), route.choice("method", METHODS, "POST")
        if not _PATH.fullmatch(path):
            raise SettingsError(f"'path' {path!r} is no path such as /orders/{{number}}", where=route.name)
        if path == "/livez" or path.startswith("/api/componentHost"):
            raise SettingsError(f"'path' {path} is taken", where=route.name)
        shape = re.sub(r"\{\w+\}", "{}", path)
        if any(re.sub(r"\{\w+\}", "{}", other.path) == shape and other.method == method for other in found):
            raise SettingsError(f"{method} {path} is declared twice", where=route.name)
        found.append(Declared(path, method, route.text("type")))
    if not found:
        raise SettingsError("the setting 'routes' names no route", where=settings.name)
    return tuple(found)


def application(
    declared: tuple[Declared, ...], limits: Limits, publisher: MessagePublisher, owner: Component, token: str | None
) -> Starlette:
    """The application of these routes; each good request is published before it is answered."""
    bucket = Bucket(limits.per_second, limits.burst)
    busy = 0

    def guarded(handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            nonlocal busy
            if token is not None and not _allowed(request.headers.get("authorization", ""), token):
                raise Problem(401, "UNAUTHORIZED", "a bearer token is needed", WWW_Authenticate="Bearer")
            if pause := bucket.wait(asyncio.get_running_loop().time()):
                raise Problem(429, "TOO_MANY_REQUESTS", "too many requests", Retry_After=str(max(1, round(pause))))
            if busy >= limits.at_once:
                raise Problem(503, "BUSY", f"{busy} requests are being worked on", Retry_After="1")
            busy += 1
            try:
                return await handle(request)
            finally:
                busy -= 1

        return answer

    def into(route: Declared) -> Callable[[Request], Awaitable[Response]]:
        async def accept(request: Request) -> Response:
            message = await _message(request, route, limits, owner)
            try:
                async with asyncio.timeout(limits.publish):
                    await publisher.publish(message)
            except Exception as error:
                owner.log.warning("message %s was not published: %s", message.id, error or type(error).__name__)
                what = "the message could not be published now; the same Idempotency-Key makes trying again safe"
                raise Problem(503, "NOT_PUBLISHED", what, Retry_After="1") from error
            headers = {"X-Correlation-ID": message.correlation_id} if message.correlation_id else {}
            return JSONResponse({"id": message.id}, 202, headers)

        return accept

    async def live(_request: Request) -> Response:
        return PlainTextResponse("ok\n")

    made = [Route(route.path, guarded(into(route)), methods=[route.method], name=route.type) for route in declared]
    made_up = Starlette(
        routes=[*_merged(made), Route("/livez", live)],
        exception_handlers={Problem: _problem, HTTPException: _http_problem, Exception: _mistake},
    )
    made_up.router.redirect_slashes = False
    return made_up


def _merged(made: list[Route]) -> list[Route]:
    """One route for each path, so that a wrong method is answered with all that are allowed."""
    by_path: dict[str, list[Route]] = {}
    for route in made:
        by_path.setdefault(route.path, []).append(route)
    merged = []
    for path, same in by_path.items():
        handlers = {method: route.endpoint for route in same for method in route.methods or () if method != "HEAD"}

        async def dispatch(request: Request, handlers: dict[str, Any] = handlers) -> Response:
            answered: Response = await handlers[request.method](request)
            return answered

        one = Route(path, dispatch, methods=sorted(handlers))
        one.methods = set(handlers)  # HEAD must not publish, though it comes with GET
        merged.append(one)
    return sorted(merged, key=lambda route: route.path.count("{"))  # what is spelled out comes before what is not


async def _message(request: Request, route: Declared, limits: Limits, owner: Component) -> Message:
    properties = {
        **dict(request.query_params.items()),
        **{name: str(value) for name, value in request.path_params.items()},
        "method": request.method,
        "path": request.url.path,
    }
    correlation = request.headers.get("x-correlation-id", "")
    if correlation and not _CORRELATION.fullmatch(correlation):
        raise Problem(400, "BAD_HEADER", "X-Correlation-ID is up to 128 letters, digits and . _ : -")
    key = request.headers.get("idempotency-key", "")
    body = await _body(request, limits)
    message = Message(_json(request, body), route.type, properties=properties, correlation_id=correlation)
    if not key:
        return message
    return Message(
        message.content,
        route.type,
        properties=properties,
        correlation_id=correlation,
        id=derived_id(owner.name.partition(".")[0], route.method, request.url.path, key),  # the same at each replica
    )


async def _body(request: Request, limits: Limits) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.body:
        _too_large(limits)
    held = bytearray()
    try:
        async with asyncio.timeout(limits.read):
            async for chunk in request.stream():
                held += chunk
                if len(held) > limits.body:
                    _too_large(limits)
    except TimeoutError:
        raise Problem(
            408, "TOO_SLOW", f"the body did not arrive within {limits.read:g} s", Connection="close"
        ) from None
    except ClientDisconnect:
        raise Problem(400, "INCOMPLETE", "the body ended early") from None
    return bytes(held)


def _too_large(limits: Limits) -> NoReturn:
    raise Problem(413, "TOO_LARGE", f"a body has at most {limits.body} bytes", Connection="close")


def _json(request: Request, body: bytes) -> Any:
    """The body's value; null when there is none."""
    if not body and request.method in ("GET", "HEAD", "DELETE"):
        return None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Problem(415, "NOT_JSON", "the body must be application/json", Accept="application/json")
    try:
        value = json.loads(body, parse_constant=_no_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        why = str(error) if not isinstance(error, RecursionError) else "nested too deep"
        raise Problem(400, "BAD_JSON", f"the body is no JSON text: {why}") from error
    if _depth(value) > DEEPEST:
        raise Problem(400, "BAD_JSON", f"the body is nested deeper than {DEEPEST} levels")
    return value


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [
            item
            for held in level
            if isinstance(held, dict | list)
            for item in (held.values() if isinstance(held, dict) else held)
        ]
    return deepest


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _allowed(header: str, token: str) -> bool:
    return hmac.compare_digest(header.encode(), f"Bearer {token}".encode())


def _answer(status: int, code: str, detail: str, headers: dict[str, str]) -> Response:
    body = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _answer(error.status, error.code, error.detail, error.headers)


async def _http_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "REFUSED")
    return _answer(error.status_code, code, str(error.detail), dict(error.headers or {}))


async def _mistake(_request: Request, _error: Exception) -> Response:
    return _answer(500, "INTERNAL", "a mistake of this program; its log says more", {})
