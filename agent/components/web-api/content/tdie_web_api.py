"""Turns HTTP requests into messages."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from tdie_web_routes import Limits, application, routes

from agent.errors import Refused
from agent.sdk import Component, MessagePublisher, Settings, SettingsError

ENDS_WITHIN = 5  # seconds that open requests have when the component stops


class WebApi(Component):
    """Answers on a port of its own, or beside the host's API on the replica's port."""

    def __init__(self, settings: Settings, publisher: MessagePublisher, log: logging.Logger) -> None:
        self._port = settings.integer("port", None)
        self._address = settings.text("address", "127.0.0.1")
        token = settings.secret("token", None)
        if token == "":
            raise SettingsError("the setting 'token' is empty")
        open_to_others = self._port is not None and not _loopback(self._address)
        if open_to_others and token is None and not settings.flag("anonymous", False):
            raise SettingsError(
                f"'address' {self._address} is open to others, and there is no 'token'",
                hint="name one, such as file:/etc/tdie/web-api.token, or say anonymous: true",
            )
        limits = Limits(
            body=settings.integer("maxBodyBytes", 1 << 20),
            per_second=settings.number("ratePerSecond", 0.0),
            burst=settings.integer("burst", 0),
            at_once=settings.integer("maxAtOnce", 100),
            publish=settings.seconds("publishWithin", 10.0),
            read=settings.seconds("readWithin", 10.0),
        )
        self._application = application(routes(settings), limits, publisher, self, token)
        self._log = log
        self._listener: socket.socket | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[object] | None = None

    @property
    def http(self) -> Starlette | None:
        """What the host serves on the replica's port; nothing when there is a port of its own."""
        return self._application if self._port is None else None

    @property
    def port(self) -> int | None:
        """The port of its own that it answers on."""
        return self._port

    async def start(self) -> None:
        if self._port is None:
            return
        self._listener = listener = _listen(self._address, self._port)
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._application,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=ENDS_WITHIN,
        )
        self._server = _Server(config)
        self._serving = self.spawn(self._server.serve(sockets=[listener]), name="serve")
        self._log.info("answers on %s:%d", self._address, self._port)

    async def stop(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.wait({self._serving}, timeout=ENDS_WITHIN + 1)

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # the host decides when to end


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(2048)  # from here on the port is ours, and nobody is turned away
    except OSError as error:
        listener.close()
        code = "PORT_IN_USE" if error.errno == errno.EADDRINUSE else "CANNOT_LISTEN"
        raise Refused(f"cannot listen on {address}:{port}: {error.strerror}", code=code) from error
    return listener


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
