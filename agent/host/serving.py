"""uvicorn inside a loop that is not its own: no signal handlers, no logging of its own."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from agent.correlation import Correlated


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the host decides when to end


async def serve(application: Correlated, listener: socket.socket) -> None:
    """Serve until cancelled; open requests get a second to finish."""
    config = uvicorn.Config(
        application,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
        server_header=False,
    )
    await _Server(config).serve(sockets=[listener])
