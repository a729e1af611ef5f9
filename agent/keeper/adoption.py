"""Which recorded host is which living process: a pure function of the state file and /proc."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.keeper.hosted import Hosted
from agent.keeper.linux import MARKER_HOST, MARKER_LEASE, Process, Stat
from agent.keeper.protocol import Code, HostOrder, Lease


@dataclass(frozen=True, slots=True)
class Adoption:
    """What a new keeper finds: hosts with the process that is theirs, hosts without one, hosts known by markers alone."""

    alive: tuple[tuple[Hosted, Stat], ...]
    dead: tuple[Hosted, ...]
    rebuilt: tuple[tuple[Hosted, Stat], ...]


def adopt(hosts: Sequence[Hosted], recorded: Mapping[int, Stat], living: Sequence[Process]) -> Adoption:
    """Match recorded hosts and living processes.

    `recorded` has what runs now under the recorded pids, empty after a reboot. The unique marker of a launch decides: its
    session leader is the host. Without a marker, pid and start time have to fit; a pid alone proves nothing. A leader that
    nobody recorded is rebuilt from its markers, and never ended for being unknown.
    """
    leaders = {p.env.get(MARKER_HOST, ""): p.stat for p in living if p.stat.session == p.stat.pid}
    alive: list[tuple[Hosted, Stat]] = []
    dead: list[Hosted] = []
    for host in hosts:
        seen = leaders.pop(host.launch, None) or _same(host, recorded)
        if seen is None:
            dead.append(host)
        else:
            alive.append((host, seen))
    taken = {host.order.replica for host, _ in alive}
    rebuilt = [
        (_rebuild(p), p.stat)
        for p in living
        if p.env.get(MARKER_HOST, "") in leaders
        and p.stat.session == p.stat.pid
        and p.env.get("TDIE_REPLICA", "") not in {"", *taken}
    ]
    replaced = {host.order.replica for host, _ in rebuilt}
    return Adoption(tuple(alive), tuple(h for h in dead if h.order.replica not in replaced), tuple(rebuilt))


def _same(host: Hosted, recorded: Mapping[int, Stat]) -> Stat | None:
    seen = recorded.get(host.pid) if host.pid is not None else None
    return seen if seen is not None and seen.start_time == host.start_time and seen.session == seen.pid else None


def _rebuild(process: Process) -> Hosted:
    env = process.env
    runtime = "exec" if env.get("TDIE_RUNTIME") == "exec" else "python"
    order = HostOrder(
        replica=env["TDIE_REPLICA"],
        instance=env.get("TDIE_INSTANCE", ""),
        node=env.get("TDIE_NODE", ""),
        spec_hash=env.get("TDIE_SPEC", ""),
        runtime="exec" if runtime == "exec" else "python",
        component=Code(name="", version="", digest="", content_root="/"),
        command=("unknown",) if runtime == "exec" else (),
        lease=Lease(epoch=0, index=0, grace=0.0, slack=0.0) if MARKER_LEASE in env else None,  # it is ended at once
    )
    host = Hosted(order=order, launch=env.get(MARKER_HOST, ""))
    host.take(order)
    host.whole = False
    return host
