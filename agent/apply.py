"""Carries steps out without choices: one at a time for each replica and package, all of them at once.

A failed step is a typed problem and is tried again after a growing pause; what is tried then follows from the state at that
time, so nothing is queued and nothing can be stale.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import structlog

from agent.clock import Clock
from agent.errors import TdieError
from agent.steps import Start, Step

log = structlog.get_logger("apply")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds between tries
CALM = 600.0  # seconds after which earlier drift counts no more
DISK_PAUSE = 60.0  # seconds until a disk that was full is tried again (FAULTS row 44)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a step did not succeed, and when it is tried again (boot clock)."""

    step: Step
    error: TdieError
    attempts: int
    retry_at: float


def pause_after(attempts: int) -> float:
    """Seconds before the next try: 1, 2, 4 … 300."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempts - 1, 16)))


class Applier:
    """Looks at what has changed, and carries out what follows."""

    def __init__(
        self,
        *,
        look: Callable[[str], Step | None],
        carry: Callable[[Step], Awaitable[None]],
        looked: Callable[[], None],
        clock: Clock,
        uniform: Callable[[float, float], float],
    ) -> None:
        """`look(key)` is what to do for a replica or package now; `looked()` is told after each round."""
        self._look = look
        self._carry = carry
        self._looked = looked
        self._clock = clock
        self._uniform = uniform
        self._dirty: set[str] = set()
        self._todo: dict[str, Step] = {}
        self._flights: dict[str, asyncio.Task[None]] = {}
        self._healed: dict[str, tuple[int, float]] = {}
        self._wake = asyncio.Event()
        self.failures: dict[str, Failure] = {}

    @property
    def idle(self) -> bool:
        """Nothing to do and nothing under way."""
        return not (self._todo or self._flights or self._dirty)

    def look_again(self, keys: Iterable[str]) -> None:
        """Something about these replicas or packages may have changed."""
        self._dirty.update(keys)
        self._wake.set()

    def retry_now(self) -> None:
        """A new assignment: earlier failures do not delay it."""
        self.failures.clear()
        self._wake.set()

    async def run(self) -> None:
        """Apply for ever; cancelled with everything it has under way."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wake.clear()
                self._look_at_dirty()
                look_again_at = self._launch(tasks)
                self._looked()
                await self._sleep(look_again_at)

    def _look_at_dirty(self) -> None:
        for key in sorted(self._dirty):
            step = self._look(key)
            if step is None:
                self._todo.pop(key, None)
                self.failures.pop(key, None)
            else:
                self._todo[key] = step
                failure = self.failures.get(key)
                if failure is not None and failure.step != step:
                    del self.failures[key]
        self._dirty.clear()

    def _launch(self, tasks: asyncio.TaskGroup) -> float | None:
        now = self._clock.now()
        later: list[float] = []
        for key, step in self._todo.items():
            if key in self._flights:
                continue
            not_before = self._not_before(key, step, now)
            if not_before > now:
                later.append(not_before)
                continue
            if isinstance(step, Start) and step.drift:
                self._healed[key] = (self._drifts(key, now) + 1, now)
            task = tasks.create_task(self._fly(key, step), name=f"{type(step).__name__.lower()} {key}")
            self._flights[key] = task
        return min(later, default=None)

    def _not_before(self, key: str, step: Step, now: float) -> float:
        failure = self.failures.get(key)
        if failure is not None:
            return failure.retry_at
        if isinstance(step, Start) and step.drift and (count := self._drifts(key, now)):
            return self._healed[key][1] + pause_after(count)  # what stops again and again must not be a hot loop
        return now

    def _drifts(self, key: str, now: float) -> int:
        count, last = self._healed.get(key, (0, now))
        return count if now - last < CALM else 0

    async def _fly(self, key: str, step: Step) -> None:
        try:
            await self._carry(step)
            self.failures.pop(key, None)
        except TdieError as error:
            self._failed(key, step, error)
        finally:
            self._flights.pop(key, None)
            self.look_again((key,))

    def _failed(self, key: str, step: Step, error: TdieError) -> None:
        before = self.failures.get(key)
        attempts = before.attempts + 1 if before else 1
        pause = DISK_PAUSE if error.code == "DISK_FULL" else pause_after(attempts) * self._uniform(0.9, 1.1)
        self.failures[key] = Failure(step, error, attempts, self._clock.now() + pause)
        log.warning("step failed", step=type(step).__name__, key=key, error=str(error), again_in=round(pause, 1))

    async def _sleep(self, until: float | None) -> None:
        if until is None:
            await self._wake.wait()
            return
        try:
            async with asyncio.timeout(max(0.0, until - self._clock.now())):
                await self._wake.wait()
        except TimeoutError:
            return
