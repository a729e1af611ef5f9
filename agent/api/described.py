"""PUBLIC: an API's description says how it refuses: problems as RFC 9457, and a bearer token."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from agent.api.auth import OPEN_PATHS
from agent.api.problems import MEDIA_TYPE
from agent.callers import Needs
from agent.docs_page import page

_TEXT = {"type": "string"}
_PROBLEM = {
    "type": "object",
    "required": ["type", "status", "code", "detail"],
    "properties": {
        "type": _TEXT,
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "Stable: for programs."},
        "detail": {"type": "string", "description": "One sentence for people."},
        "hint": _TEXT,
        "where": _TEXT,
    },
}
_REFUSED = {
    "description": "A problem",
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_UNUSED = ("HTTPValidationError", "ValidationError")


def describe(app: FastAPI, needs: Needs) -> None:
    """From now on the description at /openapi.json is complete, and /docs shows it; it is made when it is first asked for."""
    plain = app.openapi

    def complete() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(plain(), needs)
        return app.openapi_schema

    app.openapi = complete  # type: ignore[method-assign]

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """The same for people."""
        return HTMLResponse(page(complete()))


def _completed(said: dict[str, Any], needs: Needs) -> dict[str, Any]:
    for path, methods in said["paths"].items():
        for method, operation in methods.items():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = _REFUSED
            if path not in OPEN_PATHS:
                operation["security"] = [{"token": []}]
                operation["x-tdie-role"] = str(needs.role(method.upper(), path))
    schemas = {
        name: schema
        for name, schema in said.setdefault("components", {}).get("schemas", {}).items()
        if name not in _UNUSED
    }
    said["components"]["schemas"] = {**schemas, "Problem": _PROBLEM}
    said["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return said
