"""How a process ended, in one line for people."""

from __future__ import annotations

import os
from pathlib import Path

from agent.keeper.linux import signal_name
from agent.keeper.protocol import HostOrder

TAIL = 4096
LONGEST = 200


def cause_of_end(cause: str, status: int | None, order: HostOrder) -> str:
    """What the host said itself; else its exit status or signal, and for a program the last line of its log."""
    if cause:
        return cause
    text = _ended(status)
    last = last_line(order.log) if order.runtime == "exec" else ""
    return f"{text}: {last}" if last else text


def _ended(status: int | None) -> str:
    if status is None:
        return "ended while its exit status could not be seen"
    if os.WIFSIGNALED(status):
        return f"killed by {signal_name(os.WTERMSIG(status))}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"


def last_line(path: str) -> str:
    """The last line that is not empty, shortened; empty when there is none to read."""
    if not path:
        return ""
    try:
        with Path(path).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    found = next((text.strip() for text in reversed(lines) if text.strip()), "")
    return found[:LONGEST]
