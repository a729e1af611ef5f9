"""The host's HTTP API: its socket listens from the start, the application is made at the first connection."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import TdieError
from agent.host import borrowed
from agent.host.component_http import ComponentHttp
from agent.host.host import Host
from agent.sdk.extension import describe

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse

log = logging.getLogger("host.api")


async def serve_on_first_call(host: Host, listener: socket.socket, shut_down: Callable[[], None]) -> None:
    """Serve the API until cancelled; until somebody connects this costs a file descriptor and nothing else."""
    loop = asyncio.get_running_loop()
    called = asyncio.Event()
    listener.setblocking(False)
    loop.add_reader(listener.fileno(), called.set)
    try:
        await called.wait()
    finally:
        loop.remove_reader(listener.fileno())
    borrowed.lend()
    from agent.host.serving import serve

    await serve(application(host, shut_down), listener)


def application(host: Host, shut_down: Callable[[], None]) -> Starlette:
    """The seed's paths of one host, with health endpoints."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Mount, Route

    token = _token(host.order.env.get("TDIE_API_TOKEN_FILE", ""))

    def guarded(handle: Callable[[], Awaitable[dict[str, Any]]]) -> Callable[[Request], Awaitable[JSONResponse]]:
        async def answer(request: Request) -> JSONResponse:
            if token and not _allowed(request.headers.get("authorization", ""), token):
                return _problem(401, "UNAUTHORIZED", "a bearer token is needed")
            try:
                return JSONResponse(await handle())
            except TdieError as error:
                return _problem(error.status, error.code, error.detail)
            except Exception as error:  # noqa: BLE001 - author code failed: the caller is told
                return _problem(500, "HOST_ERRORED", describe(error))

        return answer

    def _problem(status: int, code: str, detail: str) -> JSONResponse:
        body = {"type": "about:blank", "title": code, "status": status, "code": code, "detail": detail}
        return JSONResponse(body, status, media_type="application/problem+json")

    async def configuration() -> dict[str, Any]:
        return describe_host(host)

    async def start() -> dict[str, Any]:
        await host.start()
        return describe_host(host)

    async def stop() -> dict[str, Any]:
        await host.stop()
        return describe_host(host)

    async def shutdown() -> dict[str, Any]:
        shut_down()
        return {"state": host.state}

    async def live(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    async def ready(_request: Request) -> PlainTextResponse:
        healthy = host.status()["healthy"]
        return PlainTextResponse(f"{host.state}\n", 200 if healthy else 503)

    base = "/api/componentHost"
    return Starlette(
        routes=[
            Route(f"{base}/configuration", guarded(configuration)),
            Route(f"{base}/services/start", guarded(start), methods=["PUT"]),
            Route(f"{base}/services/stop", guarded(stop), methods=["PUT"]),
            Route(f"{base}/shutdown", guarded(shutdown), methods=["POST"]),
            Route("/livez", live),
            Route("/readyz", ready),
            Mount("", ComponentHttp(host)),
        ]
    )


def describe_host(host: Host) -> dict[str, Any]:
    """Configuration and run-time state; settings by name only, because their values may be secret."""
    order, status = host.order, host.status()
    packages = [("component", order.component), *([("publisher", order.publisher)] if order.publisher else [])]
    return {
        "replica": order.replica,
        "instance": order.instance,
        "node": order.node,
        "pid": os.getpid(),
        "state": status["state"],
        "healthy": status["healthy"],
        "cause": status["cause"],
        "packages": [
            {
                "kind": kind,
                "packageName": code.name,
                "packageVersion": code.version,
                "digest": code.digest,
                "type": code.component_type,
                "settings": sorted(code.settings),
                "state": status[kind],
            }
            for kind, code in packages
        ],
    }


def _token(path: str) -> str:
    return Path(path).read_text().strip() if path else ""


def _allowed(header: str, token: str) -> bool:
    return hmac.compare_digest(header.encode(), f"Bearer {token}".encode())
