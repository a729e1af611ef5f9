"""The packages of this node: which are missing, damaged, proven good, or needed no more."""

from __future__ import annotations

import asyncio
from typing import Literal

import structlog

from agent.apply import DISK_PAUSE, Applier
from agent.carry import Carrier
from agent.edges import Edges
from agent.errors import Waiting
from agent.keeper.protocol import Code, HostRow
from agent.problems import NodeProblems
from agent.steps import Collect, Fetch, Step, fetches, in_use, is_ready, preparations
from agent.table import HostTable
from agent.wire import PackageStatus

log = structlog.get_logger("agent")


class Stock:
    """What to do about packages, and how the report lists them."""

    def __init__(
        self, edges: Edges, carrier: Carrier, table: HostTable, applier: Applier, problem: NodeProblems
    ) -> None:
        self._installer = edges.installer
        self._carrier, self._table, self._applier, self._problem = carrier, table, applier, problem
        self._corrupt: dict[str, str] = {}  # digest → name, damaged on disk and not healed yet
        self._proven: set[str] = set()
        self._proof = asyncio.Event()
        self._stale = True  # while replicas are busy, packages are only told anew when they changed
        self.steps: dict[str, Step] = {}

    def changed(self) -> None:
        """Packages came, went or are ordered: what is missing is fetched, and replicas that waited for one go on."""
        carrier = self._carrier
        carrier.installed = dict(self._installer.installed())
        self._stale = True
        self._corrupt = {d: name for d, name in self._corrupt.items() if d not in carrier.installed}
        damaged = ", ".join(sorted(set(self._corrupt.values())))
        self._problem(
            "PKG_CORRUPT", f"{damaged}: the bytes on this disk are not what their digest says" if damaged else ""
        )
        local = carrier.local()
        steps: list[Step] = [*fetches(local), *preparations(local)]
        if not steps and self._table.known and carrier.assignment is not None:
            used = in_use(carrier.assignment, self._table.rows.values())
            keep = carrier.assignment.policy.keep_versions
            going = {*self._installer.collectable(used, keep)}
            if carrier.assignment.policy.stop_manual:
                going |= self._installer.manual() - used
            steps += [Collect(digest) for digest in sorted(going)]
        before = self.steps
        self.steps = {step.key: step for step in steps}
        waiting = {name for name, order in carrier.orders.items() if is_ready(order, local)}
        self._applier.look_again(before.keys() | self.steps.keys() | waiting)

    def seen(self, row: HostRow | None) -> None:
        """A healthy host proves that its packages are good."""
        if row is not None and row.healthy and row.order.component.digest not in self._proven:
            self._proof.set()

    async def note_good(self) -> None:
        """Packages whose replicas are healthy are kept for a rollback."""
        while True:
            await self._proof.wait()
            self._proof.clear()
            rows = self._table.rows.values()
            found = {code.digest for row in rows if row.healthy for code in _codes(row)} - self._proven
            if found:
                try:
                    await self._installer.good(found)
                    self._proven |= found
                    self._problem("RECORDS_WRITE", "")
                except Waiting as error:
                    self._problem("RECORDS_WRITE", f"{error.detail}: not noted that packages run well")
                    await asyncio.sleep(DISK_PAUSE)
                    self._proof.set()

    async def verify(self, every: float) -> None:
        """Every installed package is read again at the start and then on a slow beat; a damaged one is fetched anew."""
        while True:
            try:
                wrong = await self._installer.verify()
            except Waiting as error:
                log.warning("packages could not be verified", error=str(error))
                wrong = {}
            self._corrupt |= wrong
            for name in wrong.values():
                log.error("a package is damaged on this disk, it is fetched anew", package=name)
            if wrong:
                self.changed()
            await asyncio.sleep(every)

    def news(self) -> tuple[PackageStatus, ...] | None:
        """The packages for the report; None while they need not be told anew."""
        return self._statuses() if self._applier.idle or self.steps or self._stale else None

    def _statuses(self) -> tuple[PackageStatus, ...]:
        self._stale = False
        carrier = self._carrier
        used = in_use(carrier.assignment, self._table.rows.values())
        manual = self._installer.manual() - in_use(carrier.assignment, ())
        rows = [
            PackageStatus(package=found.package, state="Installed", used=digest in used, manual=digest in manual)
            for digest, found in carrier.installed.items()
        ]
        for key, step in self.steps.items():
            if isinstance(step, Fetch) and step.package.package.digest not in carrier.installed:
                failure = self._applier.failures.get(key)
                trying = failure is None or step.package.package.digest in carrier.fetching
                error = str(failure.error) if failure else ""
                state: Literal["Fetching", "Failed"] = "Fetching" if trying else "Failed"
                rows.append(PackageStatus(package=step.package.package, state=state, error=error))
        return tuple(sorted(rows, key=lambda r: (r.package.name, r.package.version, r.package.digest)))


def _codes(row: HostRow) -> tuple[Code, ...]:
    return (row.order.component, *([row.order.publisher] if row.order.publisher else []))
