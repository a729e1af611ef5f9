"""What ended hosts left behind: processes of their control group, their session, or with their marker."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Set

from agent.keeper import linux
from agent.keeper.cgroups import Cgroups
from agent.keeper.hosted import Hosted


def leftovers(
    hosts: Set[Hosted], known: Iterable[int], zygote: int | None, cgroups: Cgroups, keeper: str
) -> dict[Hosted, list[linux.Stat]]:
    """What lives of these hosts; `known` are the pids of hosts that live."""
    known = frozenset(known)
    grouped = {host: inside for host in hosts if (inside := _in_group(host, known, cgroups))}
    children = linux.children()
    if children is not None and children <= known | {zygote} and all(host.own for host in hosts):
        return grouped  # whatever our own child left behind would be our child now, or is in its group
    found: dict[Hosted, list[linux.Stat]] = {}
    marked = linux.marked(keeper)
    members = linux.sessions(host.ended[0] for host in hosts if host.ended)
    for host in hosts:
        mine = {p.stat.pid: p.stat for p in marked if host.launch and p.env.get(linux.MARKER_HOST) == host.launch}
        if host.ended is not None:
            ticks = host.ended[1] * os.sysconf("SC_CLK_TCK")  # a later session of that number is another's
            mine |= {s.pid: s for s in members if s.session == host.ended[0] and s.start_time <= ticks}
        mine |= {seen.pid: seen for seen in grouped.get(host, ())}
        found[host] = [seen for pid, seen in mine.items() if pid not in known]
    return found


def _in_group(host: Hosted, known: Container[int], cgroups: Cgroups) -> list[linux.Stat]:
    """What is in the host's group still, its known process apart."""
    if not cgroups.populated(host.launch):
        return []
    stats = (linux.stat(pid) for pid in cgroups.processes(host.launch) if pid not in known)
    return [seen for seen in stats if seen is not None]
