"""Tasks that run code of others, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


async def end_all(tasks: Iterable[asyncio.Task[Any]], within: float) -> set[asyncio.Task[Any]]:
    """The tasks that still run though they were cancelled twice in so many seconds; what the others raised is kept in them.

    Twice, because a library that waits with `asyncio.wait_for` can lose a cancellation that comes together with its
    result on Python before 3.12 (CPython issue 86296). Not more often: what a task does at its end would never get done.
    """
    ending = set(tasks)
    left = {task for task in ending if not task.done()}
    for _ in range(2):
        for task in left:
            task.cancel()
        if left:
            _, left = await asyncio.wait(left, timeout=within / 2)
    for task in ending - left:
        if not task.cancelled():
            task.exception()  # seen: asyncio would complain that nobody looked
    return left
