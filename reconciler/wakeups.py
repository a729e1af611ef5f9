"""What makes the loop look again. A wake-up carries no data: a missed one costs time, never correctness."""

from __future__ import annotations

import asyncio


class Wakeups:
    """Collects reasons to look again; many wake-ups before the next look are one."""

    def __init__(self) -> None:
        self._reasons: set[str] = set()
        self._event = asyncio.Event()

    def wake(self, reason: str) -> None:
        """The loop looks again soon. `reason` is for logs: `git`, `report`, `consul`, `person`, `timer`."""
        self._reasons.add(reason)
        self._event.set()

    async def wait(self, timeout: float) -> frozenset[str]:
        """The reasons collected since the last call, at the latest after `timeout` seconds (then `timer`)."""
        try:
            async with asyncio.timeout(max(0.0, timeout)):
                await self._event.wait()
        except TimeoutError:
            self._reasons.add("timer")
        reasons = frozenset(self._reasons)
        self._reasons.clear()
        self._event.clear()
        return reasons
