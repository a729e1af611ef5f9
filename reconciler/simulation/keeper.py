"""A keeper without processes: what the real agent gets on a simulated machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from agent.errors import Refused, Waiting
from agent.keeper.protocol import HostOrder, HostRow
from reconciler.simulation.machine import STOP_TAKES, Machine, new_pid, str_of

START_TAKES = 0.2  # seconds of virtual time


class SimKeeper:
    """A keeper without processes: starts and stops take a little virtual time."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def start(self, order: HostOrder) -> None:
        self._must_be_up()
        self._must_be_in_time(order)
        before = self._machine.rows.get(order.replica)
        self._machine.witness.starts(self._machine.name, order, before)
        self._machine.crashes.pop(order.replica, None)
        restarts = before.restarts if before and before.spec_hash == order.spec_hash else 0
        self._machine.put(self._row(order, "Starting", healthy=False, restarts=restarts))
        self._machine.look_at_leases()
        self._later(START_TAKES, order)

    def _later(self, delay: float, order: HostOrder) -> None:
        self._machine.keeper.later(delay, self._started, order)

    def _started(self, order: HostOrder) -> None:
        row = self._machine.rows.get(order.replica)
        if not self._machine.up or row is None or row.state != "Starting" or row.order != order:
            return  # stopped or replaced meanwhile
        well = str_of(order) not in self._machine.broken
        self._machine.put(
            replace(
                self._row(order, "Started", healthy=well, restarts=row.restarts),
                pid=new_pid(),
                last_error="" if well else "the component says it is not well",
            )
        )

    async def stop(self, replica: str) -> None:
        self._must_be_up()
        row = self._machine.rows.get(replica)
        if row is None or row.state in ("Stopped", "Stopping", "Failed"):
            return
        self._machine.witness.stops(self._machine.name, row)
        self._machine.put(replace(row, state="Stopping", healthy=False, since=self._machine.clock.now()))
        self._machine.keeper.later(STOP_TAKES, self._machine.stopped, replica)

    async def reconfigure(self, order: HostOrder) -> None:
        self._must_be_up()
        row = self._machine.rows[order.replica]
        if row.state != "Started":  # as the real one: there is no process that could take other settings
            await self.start(order)
            return
        self._machine.put(
            replace(row, order=order, spec_hash=order.spec_hash, state="Started", since=self._machine.clock.now())
        )

    async def adjust(self, order: HostOrder) -> None:
        self._must_be_up()
        row = self._machine.rows[order.replica]
        if row.order.lease is None:
            self._must_be_in_time(order)
        self._machine.put(replace(row, order=order, spec_hash=order.spec_hash))
        self._machine.look_at_leases()

    async def rename(self, replica: str, order: HostOrder) -> None:
        self._must_be_up()
        self._machine.witness.renames(self._machine.name, replica, order)
        row = self._machine.rows.pop(replica)
        self._machine.put(replace(row, replica=order.replica, order=order, spec_hash=order.spec_hash))

    async def forget(self, replica: str) -> None:
        self._must_be_up()
        self._machine.rows.pop(replica, None)

    async def extend(self, deadline: float) -> None:
        self._must_be_up()
        self._machine.extend(deadline)

    async def agree(self, replica: str, deadline: float) -> None:
        self._must_be_up()
        self._machine.agree(replica, deadline)

    async def fence(self, replica: str, code: str) -> None:
        self._must_be_up()
        row = self._machine.rows.get(replica)
        if row is not None and row.order.lease is not None:
            self._machine.end_leased(replica, code, row.order.lease.grace)

    async def rows(self) -> tuple[HostRow, ...]:
        self._must_be_up()
        return tuple(self._machine.rows.values())

    async def problems(self) -> Mapping[str, str]:
        self._must_be_up()
        return dict(self._machine.problems)

    async def events(self) -> AsyncIterator[HostRow]:
        self._must_be_up()
        queue: asyncio.Queue[HostRow | None] = asyncio.Queue()
        for row in self._machine.rows.values():
            queue.put_nowait(row)
        self._machine.listeners.append(queue)
        try:
            while (event := await queue.get()) is not None:
                yield event
            raise Waiting("the keeper is gone")
        finally:
            self._machine.listeners.remove(queue)

    def _row(self, order: HostOrder, state: str, *, healthy: bool, restarts: int) -> HostRow:
        return HostRow(
            replica=order.replica,
            spec_hash=order.spec_hash,
            state=state,
            healthy=healthy,
            since=self._machine.clock.now(),
            order=order,
            started_at=f"{self._machine.clock.wall():%Y-%m-%dT%H:%M:%SZ}",
            restarts=restarts,
        )

    def _must_be_in_time(self, order: HostOrder) -> None:
        if self._machine.over(order):
            raise Refused(f"the leases of this node are over, {order.replica} may not start", code="LEASE_OVER")

    def _must_be_up(self) -> None:
        if not self._machine.up or self._machine.keeper_away:
            raise Waiting(f"the keeper of {self._machine.name} is gone")
