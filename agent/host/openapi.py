"""The description of a host's HTTP API, as OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agent.callers import Needs
from agent.host.operations import BASE, Operation
from agent.host.states import HostState
from agent.sdk.extension import ObjectState

_TEXT = {"type": "string"}
_FAILURE = {
    "type": ["object", "null"],
    "required": ["code", "detail", "at"],
    "properties": {"code": _TEXT, "detail": _TEXT, "at": {"type": "string", "format": "date-time"}},
}
_PART = {
    "type": "object",
    "required": ["kind", "packageName", "packageVersion", "digest", "type", "settings", "state", "error"],
    "properties": {
        "kind": {"enum": ["component", "publisher"]},
        "packageName": _TEXT,
        "packageVersion": _TEXT,
        "digest": _TEXT,
        "type": _TEXT,
        "settings": {"type": "array", "items": _TEXT, "description": "Names only: values may be secret."},
        "state": {"enum": [*ObjectState, None]},
        "error": _FAILURE,
    },
}
SCHEMAS: dict[str, Any] = {
    "Host": {
        "type": "object",
        "required": ["replica", "instance", "node", "pid", "port", "state", "healthy", "cause", "error", "packages"],
        "properties": {
            "replica": _TEXT,
            "instance": _TEXT,
            "node": _TEXT,
            "pid": {"type": "integer"},
            "port": {"type": "integer"},
            "state": {"enum": list(HostState)},
            "healthy": {"type": "boolean"},
            "cause": _TEXT,
            "error": _FAILURE,
            "packages": {"type": "array", "items": _PART},
        },
    },
    "Init": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "packageName": _TEXT,
            "version": _TEXT,
            "assemblyPath": {"type": "string", "description": "A content root; any folder, for hosts started by hand."},
            "fullyQualifiedClassName": {
                "type": "string",
                "description": "`module:Class`, or A.B.C for C of module A.B.",
            },
            "settings": {"type": "object"},
        },
    },
    "Package": {
        "type": "object",
        "required": ["packageName", "packageVersion", "digest", "versions", "contentRootPath"],
        "properties": {
            "packageName": _TEXT,
            "packageVersion": _TEXT,
            "digest": _TEXT,
            "versions": {"type": "array", "items": _TEXT},
            "contentRootPath": _TEXT,
        },
    },
    "Packages": {"type": "array", "items": {"$ref": "#/components/schemas/Package"}},
    "Problem": {
        "type": "object",
        "required": ["type", "status", "code", "detail"],
        "properties": {"type": _TEXT, "status": {"type": "integer"}, "code": _TEXT, "detail": _TEXT, "hint": _TEXT},
    },
}
_BODIES: dict[str, Any] = {
    "Init": {
        "required": False,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Init"}}},
    },
    "Package": {
        "required": True,
        "content": {
            "application/zip": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"package": {"type": "string", "format": "binary"}}}
            },
        },
    },
}


def document(operations: Iterable[Operation], needs: Needs, *, secured: bool) -> dict[str, Any]:
    """The whole description; `secured` when a token is asked for."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(BASE + operation.path, {})[operation.method.lower()] = _described(operation, needs)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tdie component host", "version": "1"},
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}] if secured else [],
    }


def _described(operation: Operation, needs: Needs) -> dict[str, Any]:
    said: dict[str, Any] = {
        "summary": operation.summary,
        "tags": [operation.tag],
        "x-tdie-role": str(needs.role(operation.method, BASE + operation.path)),
        "operationId": f"{operation.method.lower()}{operation.path.replace('/', '_').replace('{', '').replace('}', '')}",
        "responses": {
            str(operation.status): _content("application/json", operation.answer),
            "default": _content("application/problem+json", "Problem"),
        },
    }
    if "{packageName}" in operation.path:
        said["parameters"] = [{"name": "packageName", "in": "path", "required": True, "schema": _TEXT}]
    if operation.method == "PUT" and operation.path == "/packages":
        said["parameters"] = [{"name": "rollback", "in": "query", "schema": {"type": "boolean"}}]
    if operation.body:
        said["requestBody"] = _BODIES[operation.body]
    return said


def _content(media_type: str, schema: str) -> dict[str, Any]:
    return {"description": schema, "content": {media_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}
