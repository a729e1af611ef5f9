"""The keeper's rows as this agent knows them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from agent.errors import TdieError
from agent.keeper.codec import VersionSkew
from agent.keeper.protocol import HostRow, Keeper

log = structlog.get_logger("carry")

_DOUBT = 5.0  # seconds after which a row we assumed is read again
_RECONNECT = (0.1, 5.0)  # seconds between tries: first, longest


class HostTable:
    """The keeper's rows, followed by its events. `known` is False until they were read, and while the keeper is away."""

    def __init__(
        self,
        keeper: Keeper,
        *,
        changed: Callable[[Iterable[str]], None],
        all_read: Callable[[], None],
        problem: Callable[[str, str], None],
    ) -> None:
        self._keeper = keeper
        self._changed = changed
        self._all_read = all_read
        self._problem = problem
        self._doubts: dict[str, asyncio.TimerHandle] = {}
        self._read_again = asyncio.Event()
        self._doubtful: set[str] = set()
        self._being_read: set[str] = set()
        self.rows: dict[str, HostRow] = {}
        self.known = False

    async def follow(self) -> None:
        """Keep the rows true for ever; a lost keeper changes nothing but `known`."""
        pause = _RECONNECT[0]
        while True:
            try:
                self._take_all(await self._keeper.rows())
                self._problem("KEEPER_UNAVAILABLE", "")
                self._problem(VersionSkew.code, "")
                pause = _RECONNECT[0]
                await self._follow_events()
            except TdieError as error:
                self.known = False
                self._problem(
                    VersionSkew.code if isinstance(error, VersionSkew) else "KEEPER_UNAVAILABLE", error.detail
                )
                log.warning("keeper is away", error=str(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _RECONNECT[1])

    def assume(self, row: HostRow) -> None:
        """The keeper has accepted a step, so this must be so; its next event confirms it, or it is read again."""
        self.rows[row.replica] = row
        if old := self._doubts.pop(row.replica, None):
            old.cancel()
        self._doubts[row.replica] = asyncio.get_running_loop().call_later(_DOUBT, self.doubt, row.replica)
        self._changed((row.replica,))

    def drop(self, replica: str) -> None:
        """The keeper has no such row any more."""
        if timer := self._doubts.pop(replica, None):
            timer.cancel()
        if self.rows.pop(replica, None) is not None:
            self._changed((replica,))

    def doubt(self, replica: str) -> None:
        """Read this row again."""
        self._doubts.pop(replica, None)
        self._doubtful.add(replica)
        self._read_again.set()

    def doubtful(self, replica: str) -> bool:
        """Whether its row is being read again because nobody knows what came of a step."""
        return replica in self._doubtful or replica in self._being_read

    async def _follow_events(self) -> None:
        doubts = asyncio.create_task(self._settle_doubts(), name="read doubtful rows")
        try:
            async for row in self._keeper.events():
                if timer := self._doubts.pop(row.replica, None):
                    timer.cancel()
                if self.rows.get(row.replica) != row:
                    self.rows[row.replica] = row
                    self._changed((row.replica,))
        finally:
            doubts.cancel()
            await asyncio.gather(doubts, return_exceptions=True)

    async def _settle_doubts(self) -> None:
        while True:
            await self._read_again.wait()
            self._read_again.clear()
            names, self._doubtful = self._doubtful, set()
            self._being_read = names
            try:
                found = {row.replica: row for row in await self._keeper.rows()}
            except TdieError:
                self._doubtful |= names
                self._being_read = set()
                await asyncio.sleep(1.0)  # the event stream says that the keeper is away
                self._read_again.set()
                continue
            for name in names:
                if name in found:
                    self.rows[name] = found[name]
                else:
                    self.rows.pop(name, None)
            self._being_read = set()
            self._changed(names)

    def _take_all(self, rows: tuple[HostRow, ...]) -> None:
        self.rows = {row.replica: row for row in rows}
        self.known = True
        self._all_read()
