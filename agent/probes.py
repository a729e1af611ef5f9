"""Health checks beyond the host's own state: a named task for each probed replica; only a changed result is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.clock import Clock
from agent.edges import Prober
from agent.keeper.protocol import HostRow
from agent.wire import HealthCheck, ReplicaState

PROBED = ("http", "tcp", "exec")  # by the agent; a component is asked by its own host
_EAGER = 0.1  # seconds before the second look at a fresh process; doubled until it is the check's interval


@dataclass(frozen=True, slots=True)
class Probe:
    """What is probed: one process by one check."""

    check: HealthCheck
    pid: int | None
    started_at: str
    port: int
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Result:
    """The last result of a probe, and since when (boot clock). An empty text is well."""

    error: str
    since: float


class Probes:
    """All probes of one node."""

    def __init__(self, prober: Prober, clock: Clock, changed: Callable[[str], None]) -> None:
        self._prober = prober
        self._clock = clock
        self._changed = changed
        self._wanted: dict[str, Probe] = {}
        self._results: dict[str, Result] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()

    def consider(self, row: HostRow | None, replica: str, check: HealthCheck) -> None:
        """Probe this replica from now on, as it is now, or not at all."""
        probe = None
        if check.kind in PROBED and row is not None and row.state == ReplicaState.STARTED:
            probe = Probe(check, row.pid, row.started_at, row.order.port, row.order.env)
        if probe == self._wanted.get(replica):
            return
        if probe is None:
            del self._wanted[replica]
            self._results.pop(replica, None)
        else:
            self._wanted[replica] = probe
            self._results[replica] = Result("not probed yet", self._clock.now())
        self._dirty.add(replica)
        self._wake.set()

    def result(self, replica: str) -> Result | None:
        """The last result, None when the replica is not probed."""
        return self._results.get(replica)

    async def run(self) -> None:
        """Probe for ever what is wanted."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._wake.wait()
                self._wake.clear()
                for replica in sorted(self._dirty):
                    if old := self._tasks.pop(replica, None):
                        old.cancel()
                    if probe := self._wanted.get(replica):
                        self._tasks[replica] = tasks.create_task(self._probe(replica, probe), name=f"probe {replica}")
                self._dirty.clear()

    async def _probe(self, replica: str, probe: Probe) -> None:
        pause = _EAGER
        while True:
            error = await self._prober.probe(probe.check, probe.port, probe.env)
            if self._wanted.get(replica) is not probe:
                return
            held = self._results[replica]
            if error != held.error:
                since = held.since if error and held.error else self._clock.now()
                self._results[replica] = Result(error, since)
                self._changed(replica)
            pause = probe.check.interval if not error else min(pause * 2, probe.check.interval)
            await asyncio.sleep(pause)
