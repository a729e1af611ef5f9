"""What this node promised to holders on other nodes, and which nodes it must ask itself: in the ledger before it counts."""

from __future__ import annotations

from agent.clock import Clock
from agent.leases.failsafe import BLANK, Book, Kept, read_book
from agent.ledger import Ledger


class Promises:
    """The book of one node."""

    def __init__(self, ledger: Ledger, clock: Clock, boot: str) -> None:
        self._ledger, self._clock, self._boot = ledger, clock, boot
        self.book: Book = BLANK
        self._on_disk: Book = BLANK  # the last one that is known to be there

    def remember(self, text: str) -> None:
        """The ledger's word on an earlier life."""
        self._on_disk = read_book(text)
        self.book = self._on_disk.in_boot(self._boot, self._clock.now())

    async def give(self, replica: str, seconds: float, holder: str) -> None:
        """From now on, and over restarts, the replica is not started here for so long, as `holder` may run it."""
        self.book = self.book.promise(replica, seconds, self._clock.now(), self._boot, holder)
        await self._save()

    async def keep(self, replica: str, kept: Kept | None) -> None:
        """These nodes must agree before a replica here outlives its session; None: it cannot."""
        if self.book.kept.get(replica) != kept:
            self.book = self.book.keep(replica, kept)
        if self._on_disk.kept.get(replica) != kept:  # also when that failed before: nothing counts until it is there
            await self._save()

    async def _save(self) -> None:
        book = self.book
        await self._ledger.save_failsafe(book.encode())
        self._on_disk = book
