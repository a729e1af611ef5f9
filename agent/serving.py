"""uvicorn as all three APIs run it: signals are ours, and nobody holds a connection open without ever asking something."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_WITHIN = 10.0  # seconds from a connection, or a request's first byte, to the end of its headers
HEAD_LIMIT = 64 << 10  # bytes of a request's first line and headers


class Patient(HttpToolsProtocol):
    """Closes a connection whose request takes too long to arrive, or has too large a head; uvicorn knows no limits for either."""

    _deadline: asyncio.TimerHandle | None = None
    _head = 0  # bytes since the last request was complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is not None:
            self._head += len(data)
        super().data_received(data)
        if self._deadline is not None and self._head > HEAD_LIMIT and not self.transport.is_closing():
            self._has_head()
            self.send_400_response("Request head too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._has_head()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head = 0
        self._deadline = self.loop.call_later(HEAD_WITHIN, self._too_slow)

    def _has_head(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Serves an application until `should_exit`; open requests then get `grace` seconds to finish."""

    def __init__(self, app: Any, *, grace: int) -> None:
        config = uvicorn.Config(
            app,
            http=Patient,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=grace,
            server_header=False,
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours."""
        yield
