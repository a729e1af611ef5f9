"""What outlives an agent on a simulated machine: its hosts, its packages, and what its keeper does by itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from itertools import count

from agent.clock import Clock
from agent.keeper.fence import EXPIRED, Due, due, next_look
from agent.keeper.policy import GiveUp, after_crash
from agent.keeper.protocol import Code, HostOrder, HostRow
from agent.packages.protocol import Installed
from reconciler.simulation.virtual import Process
from reconciler.simulation.watchers import Nobody, Witness

LIVE = frozenset({"Starting", "Started", "Stopping"})  # states in which there is, or may be, a process
STOP_TAKES = 0.1  # seconds of virtual time

_pids = count(1000)


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
            pid=new_pid(),
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
        self.put(HostRow(replica, "by hand", "Started", True, self.clock.now(), order, pid=new_pid()))

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


def str_of(order: HostOrder) -> str:
    """`name@version` of the component that a host runs."""
    return f"{order.component.name}@{order.component.version}"


def new_pid() -> int:
    """A number that no process of this world had yet."""
    return next(_pids)
