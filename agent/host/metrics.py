"""A host's figures as Prometheus text, without a library: hosts with an environment of their own have none."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from agent.host.host import Host
from agent.host.objects import Role
from agent.host.states import HostState

METRICS = "text/plain; version=0.0.4; charset=utf-8"


def metrics_text(host: Host) -> str:
    """State and health of the host and its parts, memory and processor time of its process."""
    return "".join(_lines(host))


def _lines(host: Host) -> Iterator[str]:
    yield from _gauge("tdie_host_state", "1 for the state the host is in")
    for state in HostState:
        yield f'tdie_host_state{{state="{state}"}} {int(host.state is state)}\n'
    yield from _gauge("tdie_host_healthy", "1 while the replica is healthy")
    yield f"tdie_host_healthy {int(bool(host.status()['healthy']))}\n"
    yield from _gauge("tdie_host_part_started", "1 while this part is started")
    for role in Role:
        if host.objects.get(role) is not None:
            yield f'tdie_host_part_started{{part="{role}"}} {int(host.objects.running(role))}\n'
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    yield from _gauge("process_resident_memory_bytes", "Resident memory of this process")
    yield f"process_resident_memory_bytes {pages * os.sysconf('SC_PAGE_SIZE')}\n"
    yield "# HELP process_cpu_seconds_total Processor time of this process\n# TYPE process_cpu_seconds_total counter\n"
    yield f"process_cpu_seconds_total {time.process_time():.3f}\n"


def _gauge(name: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}\n# TYPE {name} gauge\n"
