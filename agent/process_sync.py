"""Keeps the record of processes true, and says what does not fit together. Nothing is ended by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from agent.errors import Missing, Refused, Waiting
from agent.problems import NodeProblems
from agent.processes import Findings, Identity, Processes, ProcessRecord, compare, lasting, records
from agent.table import HostTable

log = structlog.get_logger("processes")

PAUSE = 0.1  # seconds in which what changes is written together


class ProcessSync:
    """The background task of the process store."""

    def __init__(self, table: HostTable, problem: NodeProblems, *, boot_id: str, every: float) -> None:
        """`every` is the seconds between two looks at what is really there."""
        self._table, self._problem = table, problem
        self._boot, self._every = boot_id, every
        self._changed = asyncio.Event()
        self._before = Findings()
        self.recorded: dict[Identity, ProcessRecord] = {}
        self.findings = Findings()

    async def run(self, processes: Processes) -> None:
        """Record what the keeper tells as it changes, and look at the machine on a beat."""
        loaded = False
        while True:
            try:
                if not loaded:
                    self.recorded = {record.identity: record for record in await processes.recorded()}
                    loaded = True
                await self._look(processes)
                self._problem("STORE_WRITE", "")
            except Waiting as error:
                self._problem("STORE_WRITE", error.detail)
            await self._record_until(processes, asyncio.get_running_loop().time() + self._every)

    def changed(self) -> None:
        """The keeper told something new."""
        self._changed.set()

    async def kill(self, processes: Processes | None, package: str, pid: int) -> str:
        """The orphan with this id is ended; its replica comes back. Missing when there is none.

        Refused (NOT_RECORDED) for one that this agent never recorded: its marker alone proves nothing.
        """
        orphan = next((seen for seen in self.findings.orphans if seen.identity.pid == pid), None)
        record = self.recorded.get(orphan.identity) if orphan else None
        if processes is None or orphan is None or (record is not None and record.package != package):
            raise Missing(f"no process {pid} of package '{package[:100]}'", code="PROCESS_UNKNOWN")
        if record is None:
            raise Refused(
                f"process {pid} says that it is {orphan.replica}, and was never recorded here",
                code="NOT_RECORDED",
                hint="look at it, and end it yourself",
            )
        await processes.kill(orphan.identity)
        return orphan.replica

    async def _record_until(self, processes: Processes, deadline: float) -> None:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
                    await asyncio.sleep(PAUSE)
            except TimeoutError:
                return
            self._changed.clear()
            try:
                await self._record(processes, ())
            except Waiting as error:
                self._problem("STORE_WRITE", error.detail)

    async def _look(self, processes: Processes) -> None:
        if not self._table.known:
            return
        rows = dict(self._table.rows)
        told = records(rows.values(), self._boot)
        now = compare(self.recorded, rows, await processes.look({*told, *self.recorded}), self._boot)
        for record in now.gone:
            log.info("a process is gone", replica=record.replica, pid=record.identity.pid, state=record.state)
        await self._record(processes, (record.identity for record in now.gone))
        self.findings, self._before = lasting(now, self._before), now
        self._say()

    async def _record(self, processes: Processes, gone: Iterable[Identity]) -> None:
        told = records(self._table.rows.values(), self._boot)
        new = [record for identity, record in told.items() if self.recorded.get(identity) != record]
        old = [identity for identity in gone if identity not in told]
        if new or old:
            await processes.record(new, old)
        self.recorded |= {record.identity: record for record in new}
        for identity in old:
            self.recorded.pop(identity, None)

    def _say(self) -> None:
        found = self.findings
        orphans = ", ".join(f"pid {seen.identity.pid} of {seen.replica or 'nothing'}" for seen in found.orphans)
        zombies = ", ".join(f"pid {zombie.pid} below {replica}" for zombie, replica in found.zombies)
        self._problem("ORPHAN_PROCESS", f"nobody looks after {orphans}" if orphans else "")
        self._problem("ZOMBIE_PROCESS", f"ended and not reaped: {zombies}" if zombies else "")
        self._problem("PROCESS_GONE", f"the keeper tells a process that is not there: {', '.join(found.missing)}"
                      if found.missing else "")  # fmt: skip
