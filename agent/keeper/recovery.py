"""What a keeper finds of an earlier one that is gone: hosts watched again, and what ended meanwhile."""

from __future__ import annotations

from typing import Any

from agent.errors import Invalid, Refused
from agent.keeper import codec, linux
from agent.keeper.adoption import adopt
from agent.keeper.fence import EXPIRED
from agent.keeper.hosted import BACKOFF, RUNNING, STARTED, STARTING, STOPPED, STOPPING, Hosted
from agent.keeper.lifecycle import Lifecycle


def recover(life: Lifecycle) -> None:
    """Hosts of an earlier keeper are watched again; what ended meanwhile restarts by policy."""
    recorded = life.journal.load()
    same_boot = recorded.boot_id == life.journal.boot
    pids = [host.pid for host in recorded.hosts if host.pid is not None] if same_boot else []
    stats = {pid: seen for pid in pids if (seen := linux.stat(pid)) is not None and not seen.dead}
    found = adopt(recorded.hosts, stats, linux.marked(life.processes.keeper))
    for host, seen in (*found.alive, *found.rebuilt):
        _take_over(life, host, seen)
    for host in found.dead:
        life.hosts[host.order.replica] = host
        _missed(life, host, same_boot)
    life.touch()


def _take_over(life: Lifecycle, host: Hosted, seen: linux.Stat) -> None:
    life.hosts[host.order.replica] = host
    if not life.processes.take_over(host, seen):
        life.processes.sweep(host)
        return
    if host.state == STARTING and host.order.runtime == "exec":
        host.state, host.healthy = STARTED, True
    if host.order.lease is not None:  # it outlived its keeper, and nobody watched over its lease
        life.lease_over(host, EXPIRED, 0.0)
        life.kill(host)
    elif host.state == STOPPING:
        life.end(host)
    life.note(host)


def _missed(life: Lifecycle, host: Hosted, same_boot: bool) -> None:
    if host.pid is not None:
        host.ended = (host.pid, linux.now()) if same_boot else None
    was, host.pid, host.start_time = host.state, None, None
    leased = host.order.lease is not None
    if leased and was in (BACKOFF, *RUNNING):
        host.fenced = host.last_error = EXPIRED
    host.crashes = host.crashes if same_boot else ()  # their clock began anew
    if was == BACKOFF and leased:
        life.settle(host, STOPPED)
    elif was == BACKOFF:
        host.retry_at = host.retry_at if same_boot else linux.now()
        life.set_timer(host, host.retry_at or 0.0)
    elif was in RUNNING:
        host.ending, host.cause = was == STOPPING or leased, "" if same_boot else "the machine was restarted"
        life.processes.sweep(host)
    life.note(host)


def attach(life: Lifecycle, pid: int, said: dict[str, Any]) -> Hosted:
    """The host that this process is; it speaks to us again. Refused when the process is none of ours."""
    host = life.processes.of_pid(pid)
    if host is None:
        raise Refused(f"process {pid} is no host of this keeper", code="HOST_UNKNOWN")
    if not host.whole:
        _adopt_order(life, host, said)
    return host


def _adopt_order(life: Lifecycle, host: Hosted, said: dict[str, Any]) -> None:
    order = codec.order_from(said.get("order"))
    if order.replica != host.order.replica and order.replica in life.hosts:
        raise Invalid(f"{order.replica} is known already", code="REPLICA_EXISTS")
    life.hosts.pop(host.order.replica, None)
    host.take(order)
    life.hosts[order.replica] = host
    life.note(host)
