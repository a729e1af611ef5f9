"""A Unix socket to listen at, for one user alone."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from agent.keeper.address import unix_address

BACKLOG = 128


def listen_at(path: Path) -> socket.socket:
    """A listening socket at this path that only our user may connect to; what was there before is gone."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        with unix_address(path) as address:
            listener.bind(address)
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    return listener
