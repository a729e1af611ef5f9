"""Work that comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def periodic(action: Callable[[], Awaitable[object]], every: float, *, at_once: bool = False) -> None:
    """Run `action` each `every` seconds until cancelled, never two at a time; an exception of the action comes out.

    The pace is kept: a slow action shortens the next wait, and ticks missed meanwhile are left out.
    """
    if every <= 0:
        raise ValueError("periodic work needs a positive interval")
    clock = asyncio.get_running_loop()
    due = clock.time() + (0.0 if at_once else every)
    while True:
        await asyncio.sleep(max(0.0, due - clock.time()))
        await action()
        due += every * max(1, -int((due - clock.time()) // every))
