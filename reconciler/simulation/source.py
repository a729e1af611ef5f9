"""Git as a simulated world has it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace

from agent.errors import Missing
from reconciler.model.desired import DesiredState
from reconciler.model.rollback import Rollback
from reconciler.source.sourced import Sourced


class SimSource:
    """Git as the loop sees it: whatever was pushed last, or trouble."""

    def __init__(self) -> None:
        self.sourced = Sourced(None)
        self.look_takes = 0.0  # seconds
        self._moved = asyncio.Event()
        self._commits: dict[str, DesiredState] = {}  # every good one, in the order in which they were pushed
        self._back: tuple[Sourced, Sourced] | None = None  # what was pushed last, and what a rollback made of it

    def push(self, sourced: Sourced) -> None:
        """This is what a look at Git brings from now on."""
        self.sourced = sourced
        if sourced.desired is not None:
            self._commits[sourced.desired.commit] = sourced.desired
        self._moved.set()
        self._moved = asyncio.Event()

    async def look(self, *, fetch: bool = True, rollback: Rollback | None = None) -> Sourced:
        found = self.sourced
        if rollback is not None and (found.desired is None or found.desired.commit in rollback.quarantined):
            if self._back is None or self._back[0] is not found or self._back[1].rollback != rollback:
                self._back = found, replace(found, desired=self._commits[rollback.to], rollback=rollback)
            found = self._back[1]
        await asyncio.sleep(self.look_takes)
        return found

    async def load(self, revision: str) -> Sourced:
        found = self._commits.get(revision)
        if found is None:
            raise Missing(f"there is no revision '{revision}'", code="GIT_REF_MISSING")
        return Sourced(found, revision)

    async def is_earlier(self, commit: str, than: str) -> bool:
        order = list(self._commits)
        return commit in order and than in order and order.index(commit) < order.index(than)

    async def changed(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(50.0):
                await self._moved.wait()

    async def start_from(self, commit: str) -> None:
        return None
