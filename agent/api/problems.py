"""Every error of an API is an RFC 9457 problem with a stable `code`, whoever raised it."""

from __future__ import annotations

import json
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from agent.errors import TdieError
from agent.wire import SKEWED

log = structlog.get_logger("api")

MEDIA_TYPE = "application/problem+json"
_CODES = {
    400: "BAD_REQUEST", 401: "UNAUTHORIZED", 403: "DENIED", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED",
    413: "BODY_TOO_LARGE", 415: "UNSUPPORTED_MEDIA_TYPE",
}  # fmt: skip
_SKEW = "VERSION_SKEW"


def problem(status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **more: Any) -> Response:
    """A problem as a response; `more` are further members, left out when empty."""
    body = {"type": "about:blank", "status": status, "code": code, "detail": detail}
    body |= {key: value for key, value in more.items() if value not in (None, "", [], ())}
    return Response(json.dumps(body), status, headers, MEDIA_TYPE)


def from_error(error: TdieError) -> Response:
    """One of our errors as a problem; a number it carries (`epoch`) goes with it."""
    return problem(
        error.status, error.code, error.detail,
        where=error.where, hint=error.hint, epoch=getattr(error, "epoch", None),
    )  # fmt: skip


def install(app: FastAPI) -> None:
    """The app answers every error as a problem from now on."""
    app.add_exception_handler(TdieError, _tdie)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


async def _tdie(request: Request, error: Exception) -> Response:
    assert isinstance(error, TdieError)
    return from_error(error)


async def _invalid(request: Request, error: Exception) -> Response:
    """A field or a choice we do not know comes from a newer program: the sender must wait, not change."""
    assert isinstance(error, RequestValidationError)
    found = [
        {"path": ".".join(str(part) for part in e["loc"][1:]), "message": str(e["msg"]), "type": str(e["type"])}
        for e in error.errors()[:100]
    ]
    skew = any(e["type"] in SKEWED for e in found)
    code = _SKEW if skew and request.method == "PUT" else "INVALID"
    lines = "; ".join(f"{e['path']}: {e['message']}" if e["path"] else e["message"] for e in found[:5])
    return problem(422, code, lines, errors=found)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "HTTP_ERROR")
    return problem(error.status_code, code, str(error.detail), headers=dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("unexpected error", path=request.url.path, exc_info=error)
    return problem(500, "INTERNAL", "something went wrong here; the log has the details")
