"""What follows for each host: from what its process tells, from time, and from its lease."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.errors import Invalid
from agent.keeper import codec, linux
from agent.keeper.cgroups import Cgroups
from agent.keeper.fence import EXPIRED, Fence
from agent.keeper.hosted import BACKOFF, FAILED, STARTED, STARTING, STOPPED, STOPPING, Hosted
from agent.keeper.journal import Journal
from agent.keeper.loop import Loop
from agent.keeper.outcome import cause_of_end
from agent.keeper.policy import GiveUp, after_crash, counted
from agent.keeper.processes import Processes
from agent.keeper.protocol import BY_HAND, HostOrder


class Lifecycle:
    """All hosts of one data folder. `changed` and `dropped` are told of rows."""

    def __init__(self, loop: Loop, data: Path, keeper_socket: Path, cgroups: Cgroups) -> None:
        self._loop = loop
        self.hosts: dict[str, Hosted] = {}
        self.problems: dict[str, str] = {}
        self.processes = Processes(loop, keeper_socket, data, cgroups, self)
        self.deadlines = Fence(loop, self.hosts.values, self.lease_over, self.kill)
        self.changed: Callable[[Hosted], None] = lambda _host: None
        self.dropped: Callable[[str], None] = lambda _replica: None
        # only when it is on disk is it released: nothing runs whose order is not there
        release = self.processes.release
        self.journal = Journal(loop, data / "keeper.state", self.hosts.values, self.problems, release)
        self.touch = self.journal.touch
        self._leaving = False
        self._left: Callable[[], None] | None = None

    # ------------------------------------------------------------------ told by processes

    def began(self, host: Hosted) -> None:
        if host.ending:
            self.end(host)
            self.deadlines.look()
        self.note(host)

    def heard(self, host: Hosted, said: dict[str, Any]) -> None:
        if (failure := said.get("failed")) is not None:
            host.cause, host.final = str(failure.get("cause", "")), bool(failure.get("final"))
            return
        if said.get("order") is not None and host.order.instance == BY_HAND:
            self._take_by_hand(host, said["order"])
        host.host_state = str(said.get("state", ""))
        host.cause, host.final = str(said.get("cause", "")), bool(said.get("final"))
        current = said.get("spec_hash") == host.order.spec_hash or said.get("replica") != host.order.replica
        if not host.ending and current:  # else it speaks of what it ran before it was reconfigured
            if host.host_state == "Started":
                host.state, host.last_error = STARTED, str(said.get("ailing", ""))
            elif host.host_state == "Stopping":
                host.state = STOPPED if said.get("halted") else STOPPING  # halted: as good as stopped, for its agent
            elif host.host_state in ("Stopped", "Destroyed"):
                host.state = STOPPED
            host.healthy = host.state == STARTED and bool(said.get("healthy"))
        if host.host_state == "Errored" and host.order.awaiting:
            host.healthy, host.last_error = False, host.cause  # people configure it anew
        elif host.host_state == "Errored" and host.timer is None:
            self._arm(host, host.order.stop_grace)  # it ends by itself, or is ended
        self.note(host)

    def _take_by_hand(self, host: Hosted, raw: object) -> None:
        """People set this host up through its API: that is what it runs from now on, also after a crash."""
        try:
            order = codec.order_from(raw)
        except Invalid as error:
            host.last_error = str(error)
            return
        if order.replica == host.order.replica and order != host.order:
            host.take(order)
            self.touch(at_once=True)

    def hung_up(self, host: Hosted) -> None:
        if host.order.runtime == "exec" and host.state == STARTING and not host.ending and not host.cause:
            host.state, host.healthy, host.last_error = STARTED, True, ""  # closed on exec: it runs
            self.note(host)

    def failed(self, host: Hosted, code: str, cause: str) -> None:
        host.cause = f"{code} {cause}".strip()
        if code == "START_LOST" and not host.ending:
            self.relaunch(host)  # nothing ran: not a crash
        else:
            self.gone(host)

    def gone(self, host: Hosted) -> None:
        self.disarm(host)
        self.problems.pop(f"STUCK_UNKILLABLE {host.order.replica}", None)
        if self.hosts.get(host.order.replica) is not host:
            return  # its row was dropped meanwhile
        if host.ending:
            wanted, host.ending, host.wanted = host.wanted, False, None
            self.settle(host, STOPPED)
            if wanted is not None and not self._leaving:
                self.fresh(host, wanted)
            elif self._left is not None:
                self.check_left()
            return
        by_itself = host.order.runtime == "python" and host.status == 0
        if by_itself or (host.host_state == "Destroyed" and not host.cause):
            self.settle(host, STOPPED)
            return
        self._crashed(host)

    def stuck(self, host: Hosted, pids: tuple[int, ...]) -> None:
        text = "STUCK_UNKILLABLE pid=" + ",".join(map(str, pids))
        host.last_error = self.problems[f"STUCK_UNKILLABLE {host.order.replica}"] = text
        host.healthy = False
        self.note(host)
        self.check_left()

    # ------------------------------------------------------------------ what follows

    def fresh(self, host: Hosted, order: HostOrder) -> None:
        """Somebody asked for this order: it starts with a clean slate."""
        self.disarm(host)
        host.take(order)
        host.restarts, host.crashes, host.last_error, host.wanted, host.fenced = 0, (), "", None, ""
        self.relaunch(host)

    def relaunch(self, host: Hosted) -> None:
        """It is on its way again, unless its lease is over."""
        self.disarm(host)
        if self.deadlines.over(host.order.lease):
            host.fenced = host.last_error = EXPIRED
            self.settle(host, STOPPED)
            return
        host.state, host.healthy, host.retry_at, host.started_at = STARTING, False, None, linux.wall()
        self.processes.launch(host)
        self.deadlines.look()
        self.touch(at_once=True)
        self.note(host)

    def _crashed(self, host: Hosted) -> None:
        now = linux.now()
        host.last_error = cause_of_end(host.cause, host.status, host.order)
        host.crashes = (*counted(host.crashes, now, host.order.restart_interval), now)
        if not host.whole:
            host.last_error += "; ORDER_UNKNOWN its order was lost with the state file, it waits for its agent"
            self.settle(host, FAILED)
        elif host.final or isinstance(next_step := after_crash(host.crashes, now, host.order), GiveUp):
            self.settle(host, FAILED)
        elif next_step.at <= now:
            host.restarts += 1
            self.relaunch(host)
        else:
            host.retry_at = next_step.at
            self.settle(host, BACKOFF)
            self.set_timer(host, next_step.at)

    def _restart(self, host: Hosted) -> None:
        host.timer = None
        if host.state == BACKOFF:
            host.restarts += 1
            self.relaunch(host)

    def lease_over(self, host: Hosted, code: str, grace: float) -> None:
        """The host ends because its lease did; whatever else was asked for it is void."""
        host.fenced, host.last_error, host.wanted = code, code, None
        self.touch(at_once=True)
        if host.state == BACKOFF:
            self.disarm(host)
            self.settle(host, STOPPED)
        else:
            self.end(host, grace)

    def kill(self, host: Hosted) -> None:
        """Its process is killed, once."""
        if host.pid is not None and host.killed_at is None:
            self.processes.kill(host)

    def end(self, host: Hosted, grace: float | None = None) -> None:
        """The host is asked to end; it is killed after its grace, or earlier if so said."""
        first = not host.ending
        host.ending, host.state, host.healthy = True, STOPPING, False
        if self.processes.cancel(host):
            self.gone(host)
            return
        if first or host.timer is None or grace is not None:
            self._arm(host, host.order.stop_grace if grace is None else grace)
        if host.order.runtime == "python" and host.channel is not None:
            if first:
                host.channel.tell({"do": "stop"})
        elif host.pid is not None:
            self.processes.signal(host, signal.SIGTERM)
        self.note(host)

    def _arm(self, host: Hosted, grace: float) -> None:
        self.disarm(host)
        self.set_timer(host, linux.now() + grace)

    def set_timer(self, host: Hosted, when: float) -> None:
        """What waits for its restart is started then; anything else should have ended by then."""
        call = self._restart if host.state == BACKOFF else self._too_late
        host.timer = self._loop.at(when, lambda: call(host))

    def _too_late(self, host: Hosted) -> None:
        host.timer = None
        if host.pid is not None:
            self.processes.kill(host)
        elif host.on_way:
            self._arm(host, 1.0)

    def disarm(self, host: Hosted) -> None:
        """Nothing happens to it by time."""
        if host.timer is not None:
            host.timer.cancel()
            host.timer = None

    def settle(self, host: Hosted, where: str) -> None:
        """This is the state of its row, without a process."""
        host.state, host.healthy = where, False
        if where != BACKOFF:
            host.retry_at = None
        self.note(host)

    def check_left(self) -> None:
        """Who waits for the end of all hosts is called when it has come."""
        unkillable = {name.split()[-1] for name in self.problems if name.startswith("STUCK_UNKILLABLE")}
        if self._left is not None and not any(
            (host.alive or host.ending) and replica not in unkillable for replica, host in self.hosts.items()
        ):
            left, self._left = self._left, None
            self._loop.soon(left)

    # ------------------------------------------------------------------ told on

    def note(self, host: Hosted) -> None:
        """Listeners and the state file follow the host."""
        current = (host.state, host.healthy)
        if host.seen[:2] != current:
            host.since = linux.now()
        said = (host.last_error, host.retry_at, host.host_state, host.fenced, host.order_text)
        fields = (*current, host.pid, host.restarts, *said)
        if fields != host.seen:
            host.seen = fields
            self.changed(host)
        self.touch()
