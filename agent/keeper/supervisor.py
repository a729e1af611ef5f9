"""The keeper's heart: what is asked of it, what its hosts tell it, and what follows."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.errors import Invalid, Missing, Refused
from agent.keeper import codec, linux
from agent.keeper.adoption import adopt
from agent.keeper.cgroups import Cgroups
from agent.keeper.fence import EXPIRED, Fence
from agent.keeper.handover import KeptHost, KeptHosts
from agent.keeper.hosted import BACKOFF, FAILED, RUNNING, STARTED, STARTING, STOPPED, STOPPING, Hosted
from agent.keeper.journal import Journal
from agent.keeper.loop import Loop
from agent.keeper.outcome import cause_of_end
from agent.keeper.policy import GiveUp, after_crash, counted
from agent.keeper.processes import Processes
from agent.keeper.protocol import BY_HAND, HostOrder


def _same_process(before: HostOrder, after: HostOrder) -> bool:
    """Whether a process that runs the first can run the second: same code, environment, port and limits."""
    publishers = [order.publisher.digest if order.publisher else "" for order in (before, after)]
    return (
        before.component.digest == after.component.digest
        and publishers[0] == publishers[1]
        and (before.env, before.port, before.cpu, before.memory) == (after.env, after.port, after.cpu, after.memory)
        and before.python == after.python
    )


class Supervisor:
    """All hosts of one data folder. `changed` and `dropped` are told of rows."""

    def __init__(self, loop: Loop, data: Path, keeper_socket: Path, cgroups: Cgroups) -> None:
        self._loop = loop
        self.hosts: dict[str, Hosted] = {}
        self.problems: dict[str, str] = {}
        self.processes = Processes(loop, keeper_socket, data, cgroups, self)
        self._fence = Fence(loop, self.hosts.values, self._fenced, self._kill)
        self.changed: Callable[[Hosted], None] = lambda _host: None
        self.dropped: Callable[[str], None] = lambda _replica: None
        # only when it is on disk is it released: nothing runs whose order is not there
        release = self.processes.release
        self.journal = Journal(loop, data / "keeper.state", self.hosts.values, self.problems, release)
        self._touch = self.journal.touch
        self._leaving = False
        self._left: Callable[[], None] | None = None

    # ------------------------------------------------------------------ asked

    def start(self, order: HostOrder) -> None:
        """The replica runs this order: started, replaced, or left alone when it runs it already."""
        self._touch(at_once=True)
        if self._leaving:
            raise Refused("the keeper is shutting down", code="SHUTTING_DOWN")
        if self._fence.over(order.lease):
            raise Refused(f"the leases of this node are over, {order.replica} may not start", code="LEASE_OVER")
        host = self.hosts.get(order.replica)
        if host is None:
            host = self.hosts[order.replica] = Hosted(order=order)
        elif host.state in (STARTING, STARTED) and not host.ending and host.order.spec_hash == order.spec_hash:
            self.adjust(order)
            return
        elif host.alive or host.ending:
            host.wanted = order
            self._end(host)
            return
        self._fresh(host, order)

    def stop(self, replica: str) -> None:
        """The replica's row ends in Stopped, with no process left of it."""
        self._touch(at_once=True)
        host = self.hosts.get(replica)
        if host is None:
            return
        host.wanted = None
        if host.alive or host.ending:
            self._end(host)
        elif host.state != STOPPED:
            self._settle(host, STOPPED)

    def reconfigure(self, order: HostOrder) -> None:
        """The replica runs this order, in the same process where that is possible."""
        self._touch(at_once=True)
        host = self._known(order.replica)
        within = host.order.runtime == order.runtime == "python" and host.state == STARTED and not host.ending
        if not (within and _same_process(host.order, order) and host.channel is not None):
            self.start(order)
            return
        host.take(order)
        host.state, host.healthy, host.restarts, host.crashes = STARTING, False, 0, ()
        host.channel.write(f'{{"do":"reconfigure","order":{host.order_text}}}\n'.encode())
        self._note(host)

    def adjust(self, order: HostOrder) -> None:
        """Policy, grace and log of this order count from now on."""
        self._touch(at_once=True)
        host = self._known(order.replica)
        if order.lease is not None and host.order.lease is None and self._fence.over(order.lease):
            raise Refused(f"the leases of this node are over, {order.replica} cannot come under one", code="LEASE_OVER")
        if host.whole and host.order.spec_hash != order.spec_hash:
            raise Refused(f"{order.replica} runs another spec", code="OTHER_SPEC", hint="reconfigure or start it")
        host.take(order)
        self._tell_order(host)
        self._note(host)

    def rename(self, replica: str, order: HostOrder) -> None:
        """The row and process of `replica` are those of `order.replica` from now on."""
        self._touch(at_once=True)
        host = self._known(replica)
        other = self.hosts.get(order.replica)
        if other is not None and other is not host:
            if other.alive:
                raise Refused(f"{order.replica} is running", code="REPLICA_EXISTS")
            self.forget(order.replica)
        del self.hosts[replica]
        host.take(order)
        self.hosts[order.replica] = host
        if replica != order.replica:
            self.dropped(replica)
        self._tell_order(host)
        self._note(host)

    def _tell_order(self, host: Hosted) -> None:
        """The host knows its order, and who watches over leases knows whether it has one."""
        self.processes.guard(host)
        if host.channel is not None:
            host.channel.write(f'{{"do":"adjust","order":{host.order_text}}}\n'.encode())
        self._fence.look()

    def extend(self, deadline: float) -> None:
        """Leased hosts may live until then."""
        self._fence.extend(deadline)

    def agree(self, replica: str, deadline: float) -> None:
        """This leased host may live until then."""
        self._fence.agree(replica, deadline)

    def fence(self, replica: str, code: str) -> None:
        """The leased host ends within the grace of its lease."""
        host = self.hosts.get(replica)
        if host is None or host.order.lease is None or host.fenced or host.state not in (BACKOFF, *RUNNING):
            return
        self._fenced(host, code, host.order.lease.grace)

    def forget(self, replica: str) -> None:
        """There is no row of this replica any more."""
        self._touch(at_once=True)
        host = self.hosts.get(replica)
        if host is None:
            return
        if host.alive or host.ending:
            raise Refused(f"{replica} is running", code="HOST_RUNNING", hint="stop it first")
        self._quiet(host)
        del self.hosts[replica]
        self.dropped(replica)
        self._touch()

    def shutdown(self, left: Callable[[], None]) -> None:
        """All hosts are being stopped; `left` is called when none is left, or only what cannot be killed."""
        self._leaving, self._left = True, left
        for replica in list(self.hosts):
            self.stop(replica)
        self._loop.soon(self._check_left)

    def _known(self, replica: str) -> Hosted:
        if (host := self.hosts.get(replica)) is None:
            raise Missing(f"no host of {replica!r}", code="HOST_UNKNOWN")
        return host

    # ------------------------------------------------------------------ told by processes

    def began(self, host: Hosted) -> None:
        if host.ending:
            self._end(host)
            self._fence.look()
        self._note(host)

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
        self._note(host)

    def _take_by_hand(self, host: Hosted, raw: object) -> None:
        """People set this host up through its API: that is what it runs from now on, also after a crash."""
        try:
            order = codec.order_from(raw)
        except Invalid as error:
            host.last_error = str(error)
            return
        if order.replica == host.order.replica and order != host.order:
            host.take(order)
            self._touch(at_once=True)

    def hung_up(self, host: Hosted) -> None:
        if host.order.runtime == "exec" and host.state == STARTING and not host.ending and not host.cause:
            host.state, host.healthy, host.last_error = STARTED, True, ""  # closed on exec: it runs
            self._note(host)

    def failed(self, host: Hosted, code: str, cause: str) -> None:
        host.cause = f"{code} {cause}".strip()
        if code == "START_LOST" and not host.ending:
            self._relaunch(host)  # nothing ran: not a crash
        else:
            self.gone(host)

    def gone(self, host: Hosted) -> None:
        self._quiet(host)
        self.problems.pop(f"STUCK_UNKILLABLE {host.order.replica}", None)
        if host.ending:
            wanted, host.ending, host.wanted = host.wanted, False, None
            self._settle(host, STOPPED)
            if wanted is not None and not self._leaving:
                self._fresh(host, wanted)
            elif self._left is not None:
                self._check_left()
            return
        by_itself = host.order.runtime == "python" and host.status == 0
        if by_itself or (host.host_state == "Destroyed" and not host.cause):
            self._settle(host, STOPPED)
            return
        self._crashed(host)

    def stuck(self, host: Hosted, pids: tuple[int, ...]) -> None:
        text = "STUCK_UNKILLABLE pid=" + ",".join(map(str, pids))
        host.last_error = self.problems[f"STUCK_UNKILLABLE {host.order.replica}"] = text
        host.healthy = False
        self._note(host)
        self._check_left()

    # ------------------------------------------------------------------ what follows

    def _fresh(self, host: Hosted, order: HostOrder) -> None:
        """Somebody asked for this order: it starts with a clean slate."""
        self._quiet(host)
        host.take(order)
        host.restarts, host.crashes, host.last_error, host.wanted, host.fenced = 0, (), "", None, ""
        self._relaunch(host)

    def _relaunch(self, host: Hosted) -> None:
        self._quiet(host)
        if self._fence.over(host.order.lease):
            host.fenced = host.last_error = EXPIRED
            self._settle(host, STOPPED)
            return
        host.state, host.healthy, host.retry_at, host.started_at = STARTING, False, None, linux.wall()
        self.processes.launch(host)
        self._fence.look()
        self._touch(at_once=True)
        self._note(host)

    def _crashed(self, host: Hosted) -> None:
        now = linux.now()
        host.last_error = cause_of_end(host.cause, host.status, host.order)
        host.crashes = (*counted(host.crashes, now, host.order.restart_interval), now)
        if not host.whole:
            host.last_error += "; ORDER_UNKNOWN its order was lost with the state file, it waits for its agent"
            self._settle(host, FAILED)
        elif host.final or isinstance(next_step := after_crash(host.crashes, now, host.order), GiveUp):
            self._settle(host, FAILED)
        elif next_step.at <= now:
            host.restarts += 1
            self._relaunch(host)
        else:
            host.retry_at = next_step.at
            self._settle(host, BACKOFF)
            self._set_timer(host, next_step.at)

    def _restart(self, host: Hosted) -> None:
        host.timer = None
        if host.state == BACKOFF:
            host.restarts += 1
            self._relaunch(host)

    def _fenced(self, host: Hosted, code: str, grace: float) -> None:
        """The host ends because its lease did; whatever else was asked for it is void."""
        host.fenced, host.last_error, host.wanted = code, code, None
        self._touch(at_once=True)
        if host.state == BACKOFF:
            self._quiet(host)
            self._settle(host, STOPPED)
        else:
            self._end(host, grace)

    def _kill(self, host: Hosted) -> None:
        if host.pid is not None and host.killed_at is None:
            self.processes.kill(host)

    def _end(self, host: Hosted, grace: float | None = None) -> None:
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
        self._note(host)

    def _arm(self, host: Hosted, grace: float) -> None:
        self._quiet(host)
        self._set_timer(host, linux.now() + grace)

    def _set_timer(self, host: Hosted, when: float) -> None:
        """What waits for its restart is started then; anything else should have ended by then."""
        call = self._restart if host.state == BACKOFF else self._too_late
        host.timer = self._loop.at(when, lambda: call(host))

    def _too_late(self, host: Hosted) -> None:
        host.timer = None
        if host.pid is not None:
            self.processes.kill(host)
        elif host.on_way:
            self._arm(host, 1.0)

    def _quiet(self, host: Hosted) -> None:
        if host.timer is not None:
            host.timer.cancel()
            host.timer = None

    def _settle(self, host: Hosted, where: str) -> None:
        host.state, host.healthy = where, False
        if where != BACKOFF:
            host.retry_at = None
        self._note(host)

    def _check_left(self) -> None:
        unkillable = {name.split()[-1] for name in self.problems if name.startswith("STUCK_UNKILLABLE")}
        if self._left is not None and not any(
            (host.alive or host.ending) and replica not in unkillable for replica, host in self.hosts.items()
        ):
            left, self._left = self._left, None
            self._loop.soon(left)

    # ------------------------------------------------------------------ told

    def _note(self, host: Hosted) -> None:
        """Listeners and the state file follow the host."""
        current = (host.state, host.healthy)
        if host.seen[:2] != current:
            host.since = linux.now()
        said = (host.last_error, host.retry_at, host.host_state, host.fenced, host.order_text)
        fields = (*current, host.pid, host.restarts, *said)
        if fields != host.seen:
            host.seen = fields
            self.changed(host)
        self._touch()

    def hand_over(self) -> KeptHosts:
        """All that the next image of this keeper has to know of hosts."""
        return KeptHosts(
            hosts=tuple(
                KeptHost(
                    host,
                    line=None if host.channel is None else host.channel.line(),
                    due=None if host.timer is None else host.timer.when,
                )
                for host in self.hosts.values()
            ),
            waiting=self.processes.waiting(),
            swept=self.processes.swept(),
            zygote=self.processes.zygote.hand_over(),
            deadline=self._fence.deadline,
            agreed=self._fence.agreed,
            problems=self.problems,
        )

    def resume(self, kept: KeptHosts) -> None:
        """What the image of this keeper before us handed over goes on as if nothing had been."""
        self.problems.update(kept.problems)
        self.hosts.update({each.host.order.replica: each.host for each in kept.hosts})
        self.processes.resume(self.hosts, kept)
        for each in kept.hosts:
            if each.due is not None:
                self._set_timer(each.host, each.due)
        self._fence.resume(kept.deadline, kept.agreed)
        self._touch()

    def first_kill(self) -> float:
        """When the first leased host is killed if nobody extends its lease; infinite when none is to be."""
        return self._fence.first_kill()

    def recover(self) -> None:
        """Hosts of an earlier keeper are watched again; what ended meanwhile restarts by policy."""
        recorded = self.journal.load()
        same_boot = recorded.boot_id == self.journal.boot
        pids = [host.pid for host in recorded.hosts if host.pid is not None] if same_boot else []
        stats = {pid: seen for pid in pids if (seen := linux.stat(pid)) is not None and not seen.dead}
        found = adopt(recorded.hosts, stats, linux.marked(self.processes.keeper))
        for host, seen in (*found.alive, *found.rebuilt):
            self._take_over(host, seen)
        for host in found.dead:
            self.hosts[host.order.replica] = host
            self._missed(host, same_boot)
        self._touch()

    def _take_over(self, host: Hosted, seen: linux.Stat) -> None:
        self.hosts[host.order.replica] = host
        if not self.processes.take_over(host, seen):
            self.processes.sweep(host)
            return
        if host.state == STARTING and host.order.runtime == "exec":
            host.state, host.healthy = STARTED, True
        if host.order.lease is not None:  # it outlived its keeper, and nobody watched over its lease
            self._fenced(host, EXPIRED, 0.0)
            self._kill(host)
        elif host.state == STOPPING:
            self._end(host)
        self._note(host)

    def _missed(self, host: Hosted, same_boot: bool) -> None:
        if host.pid is not None:
            host.ended = (host.pid, linux.now()) if same_boot else None
        was, host.pid, host.start_time = host.state, None, None
        leased = host.order.lease is not None
        if leased and was in (BACKOFF, *RUNNING):
            host.fenced = host.last_error = EXPIRED
        host.crashes = host.crashes if same_boot else ()  # their clock began anew
        if was == BACKOFF and leased:
            self._settle(host, STOPPED)
        elif was == BACKOFF:
            host.retry_at = host.retry_at if same_boot else linux.now()
            self._set_timer(host, host.retry_at or 0.0)
        elif was in RUNNING:
            host.ending, host.cause = was == STOPPING or leased, "" if same_boot else "the machine was restarted"
            self.processes.sweep(host)
        self._note(host)

    def attach(self, pid: int, said: dict[str, Any]) -> Hosted:
        """The host that this process is; it speaks to us again. Refused when the process is none of ours."""
        host = self.processes.of_pid(pid)
        if host is None:
            raise Refused(f"process {pid} is no host of this keeper", code="HOST_UNKNOWN")
        if not host.whole:
            self._adopt_order(host, said)
        return host

    def _adopt_order(self, host: Hosted, said: dict[str, Any]) -> None:
        order = codec.order_from(said.get("order"))
        if order.replica != host.order.replica and order.replica in self.hosts:
            raise Invalid(f"{order.replica} is known already", code="REPLICA_EXISTS")
        self.hosts.pop(host.order.replica, None)
        host.take(order)
        self.hosts[order.replica] = host
        self._note(host)
