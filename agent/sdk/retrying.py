"""Trying again, and finishing what was begun."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_log = logging.getLogger("component")


def pauses(first: float = 0.5, longest: float = 30.0, *, factor: float = 2.0) -> Iterator[float]:
    """Seconds to wait between attempts, without end: growing from `first` to `longest`, each shortened by up to a fifth.

    The shortening keeps replicas that failed together from coming back together.
    """
    pause = first
    while True:
        yield pause * random.uniform(0.8, 1.0)
        pause = min(longest, pause * factor)


async def retry(
    action: Callable[[], Awaitable[T]],
    *,
    on: type[Exception] | tuple[type[Exception], ...] = Exception,
    attempts: int = 5,
    first: float = 0.5,
    longest: float = 30.0,
    within: float | None = None,
    log: logging.Logger = _log,
) -> T:
    """What `action` returns, tried up to `attempts` times (0: for ever) and for at most `within` seconds.

    The last error comes out; an error that is not one of `on` comes out at once. Each failed attempt is a warning.

        reply = await retry(lambda: ask(server), on=OSError, attempts=3)
    """
    clock = asyncio.get_running_loop()
    end = None if within is None else clock.time() + within
    for attempt, pause in enumerate(pauses(first, longest), start=1):
        try:
            return await action()
        except on as error:
            if attempt == attempts or (end is not None and clock.time() + pause > end):
                raise
            log.warning(
                "attempt %d failed, the next is in %.1f s: %s", attempt, pause, str(error) or type(error).__name__
            )
        await asyncio.sleep(pause)
    raise AssertionError("pauses never end")


async def finish(work: Coroutine[Any, Any, T], *, name: str = "finish") -> T:
    """What `work` returns, carried through to its end even when the caller is cancelled meanwhile.

    The cancellation is passed on afterwards. For the few steps that must not stop half-way, such as moving a file and
    publishing that it was moved; give the work an end of its own.
    """
    task = asyncio.create_task(work, name=name)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except Exception:  # noqa: BLE001 - comes out below, with its own traceback
            break
    if cancelled is not None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            _log.error("%s failed while its caller was cancelled", name, exc_info=failure)
        raise cancelled
    return task.result()
