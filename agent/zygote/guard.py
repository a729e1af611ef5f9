"""When a keeper is gone, nobody holds the deadlines of leased hosts: its zygote, who notices first, ends them.

The kernel kills the host itself (PR_SET_PDEATHSIG); this reaches what the host has started, in whatever session that is.
"""

from __future__ import annotations

import signal
import time
from typing import Any

from agent.keeper import linux

ROUNDS = 200  # looks for what is left, 10 ms apart


class Guard:
    """Which launches end with the keeper."""

    def __init__(self) -> None:
        self._launches: set[str] = set()

    def heard(self, request: dict[str, Any]) -> bool:
        """Whether the request was about this and nothing else."""
        if (launches := request.get("guards")) is not None:
            self._launches.update(launches)
            return True
        if (launch := request.get("guard")) is not None:
            self._launches.add(launch)
        elif (launch := request.get("unguard")) is not None:
            self._launches.discard(launch)
        return launch is not None

    def end(self) -> None:
        """Nothing of the guarded launches is left, as far as it can be killed."""
        for _ in range(ROUNDS):
            left = [p for p in linux.carrying(linux.MARKER_HOST) if p.env[linux.MARKER_HOST] in self._launches]
            if not self._launches or not left:
                return
            for process in left:
                linux.send_to(process.stat, signal.SIGKILL)
            time.sleep(0.01)
