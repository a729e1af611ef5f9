"""The host's socket listens from the start; everything that answers is imported and made at the first connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from agent.host import borrowed
from agent.host.host import Host


async def serve_on_first_call(host: Host, listener: socket.socket, shut_down: Callable[[], None], keeper: str) -> None:
    """Serve the API until cancelled; until somebody connects this costs a file descriptor and nothing else.

    `keeper` is the keeper's socket; the agent's is beside it.
    """
    loop = asyncio.get_running_loop()
    called = asyncio.Event()
    listener.setblocking(False)
    loop.add_reader(listener.fileno(), called.set)
    try:
        await called.wait()
    finally:
        loop.remove_reader(listener.fileno())
    borrowed.lend()
    from agent.host.agent_line import PACKAGES
    from agent.host.api import application
    from agent.host.serving import serve

    packages = f"{keeper.rpartition('/')[0]}/{PACKAGES}"
    await serve(application(host, shut_down, packages), listener)
