"""Serves a host's API inside the host's own loop."""

from __future__ import annotations

import socket

from agent.correlation import Correlated
from agent.serving import Server


async def serve(application: Correlated, listener: socket.socket) -> None:
    """Serve until cancelled; open requests get a second to finish."""
    await Server(application, grace=1).serve(sockets=[listener])
