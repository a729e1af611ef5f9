"""A machine's hosts, packages and ports in memory: what the real agent gets instead of a keeper and a disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Protocol

from agent.clock import Clock
from agent.errors import Refused, TdieError, Waiting
from agent.keeper.fence import EXPIRED, Due, due, next_look
from agent.keeper.policy import GiveUp, after_crash
from agent.keeper.protocol import Code, HostOrder, HostRow
from agent.ledger import MemoryLedger, Remembered
from agent.ordered import Ordered
from agent.packages.protocol import Installed
from agent.packages.retention import collectable
from agent.wire import Assignment, HealthCheck, PackageOrder
from reconciler.simulation.virtual import Process

LIVE = frozenset({"Starting", "Started", "Stopping"})  # states in which there is, or may be, a process
START_TAKES = 0.2  # seconds of virtual time
STOP_TAKES = 0.1
INSTALL_TAKES = 0.5
WRITE_TAKES = 0.001

DOWN = frozenset({"", "Stopped", "Failed"})

_pids = count(1000)


class Witness(Protocol):
    """Sees everything that happens to processes, and asks nobody."""

    def row(self, node: str, row: HostRow) -> None:
        """A host is in this state now."""

    def starts(self, node: str, order: HostOrder, before: HostRow | None) -> None:
        """An agent starts a host for this order."""

    def stops(self, node: str, row: HostRow) -> None:
        """An agent is about to stop this host."""

    def renames(self, node: str, replica: str, order: HostOrder) -> None:
        """The process of this replica goes on under another name."""

    def hurts(self, node: str, replica: str) -> None:
        """A fault ends this host."""

    def agrees(self, node: str, replica: str, deadline: float) -> None:
        """The keeper is told that a host may live so long because others agree."""

    def fences(self, node: str, row: HostRow, code: str) -> None:
        """The keeper ends this host because its lease is over."""

    def removes(self, node: str, digest: str) -> None:
        """An agent is about to delete this package."""

    def tries(self, node: str, what: str) -> None:
        """An agent tries something that may fail, perhaps again."""

    def off(self, node: str) -> None:
        """The machine died, or nobody can reach it any more."""


class Nobody:
    """A witness that looks away."""

    def row(self, node: str, row: HostRow) -> None: ...

    def starts(self, node: str, order: HostOrder, before: HostRow | None) -> None: ...

    def stops(self, node: str, row: HostRow) -> None: ...

    def renames(self, node: str, replica: str, order: HostOrder) -> None: ...

    def hurts(self, node: str, replica: str) -> None: ...

    def agrees(self, node: str, replica: str, deadline: float) -> None: ...

    def fences(self, node: str, row: HostRow, code: str) -> None: ...

    def removes(self, node: str, digest: str) -> None: ...

    def tries(self, node: str, what: str) -> None: ...

    def off(self, node: str) -> None: ...


@dataclass(slots=True)
class Machine:
    """What outlives an agent on one simulated machine."""

    name: str
    clock: Clock
    up: bool = True
    boot: int = 1
    rows: dict[str, HostRow] = field(default_factory=dict)
    packages: dict[str, Installed] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)  # versions (name@version) whose hosts never become healthy
    corrupt: set[str] = field(default_factory=set)  # digests of installed packages that are damaged on its disk
    keeper_away: bool = False  # the keeper does not answer: it crashed, and hosts go on
    keeper_lost_at: float = -1e9
    disk_full: bool = False
    crashes: dict[str, list[float]] = field(default_factory=dict)  # of each replica's host
    problems: dict[str, str] = field(default_factory=dict)  # what its keeper says of itself
    listeners: list[asyncio.Queue[HostRow | None]] = field(default_factory=list)
    witness: Witness = field(default_factory=Nobody)
    deadline: float = 0.0  # until when its keeper lets leased hosts live
    agreed: dict[str, float] = field(default_factory=dict)  # … and until when single ones of them
    stuck: set[str] = field(default_factory=set)  # replicas that nothing kills
    keeper: Process = field(default_factory=lambda: Process("keeper"))
    paused: bool = False
    woke_at: float = -1.0  # when it was resumed last
    _fence: asyncio.TimerHandle | None = None

    def extend(self, deadline: float) -> None:
        """Leased hosts may live until then."""
        self.deadline = max(self.deadline, deadline)
        self.look_at_leases()

    def agree(self, replica: str, deadline: float) -> None:
        """One leased host may live until then; what is due by now happens first."""
        self.look_at_leases()
        self.witness.agrees(self.name, replica, deadline)
        self.agreed[replica] = max(self.agreed.get(replica, 0.0), deadline)
        self.look_at_leases()

    def pause(self) -> None:
        """Nothing on the machine runs."""
        self.paused = True
        self.keeper.pause()

    def resume(self) -> None:
        """Everything goes on as if nothing had been."""
        if self.paused:
            self.paused, self.woke_at = False, self.clock.now()
            self.keeper.resume()

    @property
    def runs(self) -> bool:
        """Whether processes on it can do anything; in the instant it wakes up in, its keeper has not had its turn."""
        return self.up and not self.paused and self.woke_at < self.clock.now()

    def look_at_leases(self) -> None:
        """Its keeper ends leased hosts whose time is over, as the real one does."""
        if self._fence is not None:
            self._fence.cancel()
            self._fence = None
        now, looks = self.clock.now(), list[float]()
        for row in list(self.rows.values()):
            lease = row.order.lease
            if lease is None or row.state not in LIVE:
                continue
            deadline = max(self.deadline, self.agreed.get(row.replica, 0.0))
            what = due(deadline, lease, now)
            if what is not Due.NOTHING:
                self.end_leased(row.replica, EXPIRED, lease.grace if what is Due.END else 0.0)
            looks.append(next_look(deadline, lease, now) if what is not Due.KILL else now + 1.0)
        if looks:
            self._fence = self.keeper.later(max(0.0, min(looks) - now), self.look_at_leases)

    def end_leased(self, replica: str, code: str, grace: float) -> None:
        """The host ends because its lease did."""
        row = self.rows.get(replica)
        if row is None or row.order.lease is None or row.state not in (*LIVE, "Backoff"):
            return
        if not row.fenced:
            self.witness.fences(self.name, row, code)
        if row.state == "Backoff":
            dead = replace(row, state="Stopped", fenced=code, last_error=code, retry_at=None, since=self.clock.now())
            self.put(dead)
            return
        if not row.fenced:
            self.put(
                replace(row, state="Stopping", healthy=False, fenced=code, last_error=code, since=self.clock.now())
            )
        if replica in self.stuck:
            self.problems["STUCK_UNKILLABLE"] = f"STUCK_UNKILLABLE pid={row.pid}"
        elif grace:
            self.keeper.later(min(STOP_TAKES, grace), self.stopped, replica)
        else:
            self.stopped(replica)

    def stopped(self, replica: str) -> None:
        """Nothing of the host is left, if it was to end."""
        row = self.rows.get(replica)
        if self.up and row is not None and row.state == "Stopping" and replica not in self.stuck:
            self.put(replace(row, state="Stopped", pid=None, since=self.clock.now()))

    def stick(self, replica: str) -> None:
        """Nothing kills this host for now."""
        self.stuck.add(replica)

    def free(self, replica: str) -> None:
        """What was to kill the host has its effect."""
        self.stuck.discard(replica)
        if not self.stuck:
            self.problems.pop("STUCK_UNKILLABLE", None)
        self.stopped(replica)

    def over(self, order: HostOrder) -> bool:
        """Whether a host of this order would be ended at once."""
        return order.lease is not None and due(self.deadline, order.lease, self.clock.now()) is not Due.NOTHING

    def put(self, row: HostRow) -> None:
        """The row is what everybody sees from now on."""
        self.rows[row.replica] = row
        self.witness.row(self.name, row)
        for listener in self.listeners:
            listener.put_nowait(row)

    def kill_host(self, replica: str) -> None:
        """The host dies; what follows is the keeper's restart policy: the first time it is started again at once."""
        self.witness.hurts(self.name, replica)
        row, now = self.rows[replica], self.clock.now()
        if replica in self.stuck:
            return
        self.crashes.setdefault(replica, []).append(now)
        follows = after_crash(self.crashes[replica], now, row.order)
        dead = replace(row, pid=None, healthy=False, since=now, last_error="killed by signal 9")
        if self.over(row.order):
            self.put(replace(dead, state="Stopped", fenced=EXPIRED))
            return
        if isinstance(follows, GiveUp):
            self.put(replace(dead, state="Failed", last_error=f"killed by signal 9: {follows.reason}"))
        elif follows.at <= now:
            self.put(self._again(dead))
            self.look_at_leases()
        else:
            self.put(replace(dead, state="Backoff", retry_at=follows.at))
            self.keeper.later(follows.at - now, self._restarted, replica, self.boot)

    def _restarted(self, replica: str, boot: int) -> None:
        row = self.rows.get(replica)
        if self.up and boot == self.boot and row is not None and row.state == "Backoff":
            self.put(self._again(row))
            self.look_at_leases()

    def _again(self, row: HostRow) -> HostRow:
        if self.over(row.order):
            return replace(row, state="Stopped", fenced=EXPIRED, last_error=EXPIRED, retry_at=None)
        well = f"{row.order.component.name}@{row.order.component.version}" not in self.broken
        return replace(
            row,
            state="Started",
            healthy=well,
            pid=next(_pids),
            restarts=row.restarts + 1,
            since=self.clock.now(),
            retry_at=None,
        )

    def mend(self, version: str) -> None:
        """The version works from now on; hosts of it that run become healthy."""
        self.broken.discard(version)
        for row in list(self.rows.values()):
            if row.state == "Started" and not row.healthy and str_of(row.order) == version:
                self.put(replace(row, healthy=True, since=self.clock.now(), last_error=""))

    def stop_by_hand(self, replica: str) -> None:
        """Somebody stopped the host; no keeper brings it back."""
        self.witness.hurts(self.name, replica)
        self.put(replace(self.rows[replica], state="Stopped", healthy=False, pid=None, since=self.clock.now()))

    def start_by_hand(self, replica: str) -> None:
        """Somebody starts a host that Git knows nothing of, from a package that is there."""
        found = next(iter(self.packages.values()), None)
        if found is None:
            return
        package = found.package
        code = Code(package.name, package.version, package.digest, found.content_root, found.component_type)
        order = HostOrder(replica, "tdie-manual", self.name, "by hand", "python", code)
        self.put(HostRow(replica, "by hand", "Started", True, self.clock.now(), order, pid=next(_pids)))

    def lose_keeper(self) -> None:
        """The keeper crashed: its connections end. Leased hosts die with it, stuck ones when they can; others go on."""
        self.keeper_away, self.deadline = True, 0.0
        self.agreed.clear()
        now = self.keeper_lost_at = self.clock.now()
        for row in list(self.rows.values()):
            if row.order.lease is not None and row.state in (*LIVE, "Backoff"):
                self.witness.hurts(self.name, row.replica)
                dead = replace(row, state="Stopped", healthy=False, pid=None, fenced=EXPIRED, since=now, retry_at=None)
                if row.state in LIVE and row.replica in self.stuck:
                    dead = replace(dead, state="Stopping", pid=row.pid)
                self.rows[row.replica] = dead
                self.witness.row(self.name, dead)  # whoever follows the keeper sees it when there is one again
        for listener in self.listeners:
            listener.put_nowait(None)

    def power_off(self) -> None:
        """Everything on the machine is gone but what is on its disk."""
        self.up = False
        self.stuck.clear()
        self.problems.clear()
        self.rows.clear()
        self.deadline = 0.0
        self.agreed.clear()
        self.crashes.clear()
        self.witness.off(self.name)
        self.boot += 1
        for listener in self.listeners:
            listener.put_nowait(None)


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
                pid=next(_pids),
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


def str_of(order: HostOrder) -> str:
    """`name@version` of the component that a host runs."""
    return f"{order.component.name}@{order.component.version}"
