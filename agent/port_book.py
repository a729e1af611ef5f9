"""Which port each replica of this node has, also over a restart of the agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from agent.apply import DISK_PAUSE
from agent.edges import Ports
from agent.errors import Waiting
from agent.ledger import Ledger


class PortBook:
    """Ports by replica, kept in the ledger. The keeper's rows tell them too, so a disk that refuses is a problem to report, but
    no reason not to start."""

    def __init__(self, ports: Ports, ledger: Ledger, problem: Callable[[str, str], None]) -> None:
        self._ports, self._ledger, self._problem = ports, ledger, problem
        self._held: dict[str, int] = {}
        self._changes, self._written = 0, 0
        self._lock = asyncio.Lock()
        self._refused = asyncio.Event()

    def remember(self, held: Mapping[str, int]) -> None:
        """The ledger's word."""
        self._held.update(held)

    def seen(self, replica: str, port: int) -> None:
        """A host listens there, as the keeper says; what the ledger says goes before."""
        self._held.setdefault(replica, port)

    def choose(self, replica: str, last: int, others: Collection[int]) -> int:
        """The replica's port: the one it had (`last`, if it is not held), if nobody else took it while it was down."""
        preferred = self._held.get(replica) or last or None
        taken = {port for name, port in self._held.items() if name != replica} | set(others)
        port = self._held[replica] = self._ports.choose(preferred, taken)
        self._changes += 1
        return port

    def move(self, before: str, replica: str) -> None:
        """The replica is called otherwise."""
        if before in self._held:
            self._held[replica] = self._held.pop(before)
            self._changes += 1

    def drop(self, replica: str) -> bool:
        """Nobody has this port now; comes back with whether it was held."""
        if self._held.pop(replica, None) is None:
            return False
        self._changes += 1
        return True

    async def keep(self) -> None:
        """The ports are in the ledger, or will be once the disk takes them; many callers at once share one write."""
        async with self._lock:
            if self._written == self._changes:
                return
            changes = self._changes
            try:
                await self._ledger.save_ports(dict(self._held))
            except Waiting as error:
                self._problem("LEDGER_WRITE", error.detail)
                self._refused.set()
            else:
                self._written = changes
                self._problem("LEDGER_WRITE", "")

    async def run(self) -> None:
        """What a disk refused is tried again until it is written; cancelled at the end."""
        while True:
            await self._refused.wait()
            await asyncio.sleep(DISK_PAUSE)
            self._refused.clear()
            await self.keep()
