"""A simulated machine's disk and ports: what the real agent remembers, installs and listens on there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from itertools import count

from agent.errors import TdieError, Waiting
from agent.ledger import MemoryLedger, Remembered
from agent.ordered import Ordered
from agent.packages.protocol import Installed
from agent.packages.retention import collectable
from agent.wire import Assignment, HealthCheck, PackageOrder
from reconciler.simulation.machine import Machine

INSTALL_TAKES = 0.5  # seconds of virtual time
WRITE_TAKES = 0.001


class SimLedger(MemoryLedger):
    """A ledger on a disk that can be full, and can lose the file."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False
        self.wrote: Callable[[Assignment], None] = lambda _assignment: None

    async def save_epoch(self, epoch: int) -> None:
        self._must_have_room()
        await super().save_epoch(epoch)
        await asyncio.sleep(WRITE_TAKES)

    async def save_assignment(self, assignment: Assignment, ordered: Ordered) -> None:
        self._must_have_room()
        await super().save_assignment(assignment, ordered)
        self.wrote(assignment)
        await asyncio.sleep(WRITE_TAKES)

    async def save_leases(self, leases: str) -> None:
        self._must_have_room()
        await super().save_leases(leases)
        await asyncio.sleep(WRITE_TAKES)

    async def save_failsafe(self, failsafe: str) -> None:
        self._must_have_room()
        await super().save_failsafe(failsafe)
        await asyncio.sleep(WRITE_TAKES)

    async def save_ports(self, ports: Mapping[str, int]) -> None:
        self._must_have_room()
        await super().save_ports(ports)

    @property
    def held(self) -> Remembered:
        """What is on the disk."""
        return self._held

    def recall(self, held: Remembered) -> None:
        """This is on the disk from the start."""
        self._held = held

    def tear(self) -> None:
        """The file made no sense and was put aside: everything is forgotten, and that is known."""
        self._held = Remembered(rebuilt="ledger could not be used; it is kept as ledger.bad-1")

    def _must_have_room(self) -> None:
        if self.full:
            raise Waiting("ledger: database or disk is full", code="LEDGER_WRITE")


class SimInstaller:
    """Packages that arrive after a little virtual time, unless their version is said to be missing."""

    def __init__(self, machine: Machine, missing: set[str]) -> None:
        self._machine = machine
        self._missing = missing

    def installed(self) -> Mapping[str, Installed]:
        return dict(self._machine.packages)

    def environments(self) -> Mapping[str, str]:
        return {}

    async def prepare(self, digests: Collection[str]) -> None:
        return

    def collectable(self, in_use: Collection[str], keep: int | None) -> tuple[str, ...]:
        return collectable(self._machine.packages, in_use, 5 if keep is None else keep)

    def manual(self) -> frozenset[str]:
        return frozenset()

    async def good(self, digests: Collection[str]) -> None:
        return

    async def verify(self) -> Mapping[str, str]:
        found = sorted(self._machine.corrupt & self._machine.packages.keys())
        wrong = {digest: str(self._machine.packages[digest].package) for digest in found}
        for digest in found:
            del self._machine.packages[digest]
        self._machine.corrupt.clear()
        return wrong

    async def install(self, order: PackageOrder) -> Installed:
        package = order.package
        if (found := self._machine.packages.get(package.digest)) is not None:
            return found
        self._machine.witness.tries(self._machine.name, f"install {package}")
        await asyncio.sleep(INSTALL_TAKES)
        if self._machine.disk_full:
            raise TdieError(f"no room for {package}", code="DISK_FULL")
        if str(package) in self._missing:
            raise TdieError(f"nobody serves {package}", code="PACKAGE_MISSING")
        made = Installed(
            package,
            f"/packages/{package.digest}",
            component_type="simulated:Component",
            installed_at=self._machine.clock.now(),
        )
        self._machine.packages[package.digest] = made
        return made

    async def remove(self, digest: str) -> None:
        if digest in self._machine.packages:
            self._machine.witness.removes(self._machine.name, digest)
            del self._machine.packages[digest]


class SimPorts:
    """Ports nobody else uses."""

    def choose(self, preferred: int | None, taken: Collection[int]) -> int:
        if preferred is not None and preferred not in taken:
            return preferred
        return next(port for port in count(5000) if port not in taken)


class SimProber:
    """Every probe succeeds."""

    async def probe(self, check: HealthCheck, port: int, env: Mapping[str, str]) -> str:
        return ""
