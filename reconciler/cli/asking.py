"""What commands ask of the person who gave them, and who that is."""

from __future__ import annotations

import getpass
import socket
import sys

from agent.errors import Invalid
from reconciler.cli.out import note


def agreed(command: str) -> bool:
    """Whether the person at the terminal says yes. Invalid (CONFIRM) when nobody is there."""
    if not sys.stdin.isatty():
        raise Invalid(f"{command} asks before it acts, and nobody is here to answer", code="CONFIRM", hint="add --yes")
    note("Continue? [yN] ")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def who() -> str:
    """The user and the machine that a command comes from."""
    return f"{getpass.getuser()}@{socket.gethostname()}"[:100]
