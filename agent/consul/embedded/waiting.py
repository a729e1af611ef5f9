"""Waiting for a change of the embedded store, with asyncio primitives only (so it also works on virtual time)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.consul.embedded.base import Kind
from agent.consul.embedded.store import Store


async def until_changed(
    store: Store,
    relevant: Callable[[Kind, str], bool],
    current: Callable[[], int],
    index: int,
    wait: float,
    *,
    waker: asyncio.Event | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Return once `current()` is above `index`, or after `wait` seconds; at once for an index of 0.

    Time that passes has its effect on the store meanwhile. Whoever holds `waker` can end the wait: set it once `interrupted()`
    is true.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    changed = waker or asyncio.Event()

    def listen(kind: Kind, name: str) -> None:
        if relevant(kind, name):
            changed.set()

    store.listeners[listen] = None
    try:
        while True:
            store.advance()
            left = deadline - loop.time()
            if index <= 0 or current() > index or left <= 0 or interrupted():
                return
            changed.clear()
            due = store.next_due()
            if due is not None:
                left = min(left, max(0.0, due - store.now()) + 0.001)
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                continue
    finally:
        store.listeners.pop(listen, None)
