"""Leased hosts end in time when nobody extends their lease: not because somebody says so, but because nobody does.

The deadline is on the clock that goes on during suspend. A keeper starts without one, so it lets nothing leased live that it
cannot account for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from enum import Enum

from agent.keeper import linux
from agent.keeper.hosted import Hosted
from agent.keeper.loop import Loop, Timer
from agent.keeper.protocol import Lease

EXPIRED = "LEASE_EXPIRED"
LONGEST_WAIT = 1.0  # timers stand still while a machine sleeps; after that this is how late we may notice
INSISTENT = 0.02  # between looks at a host that should be dead


class Due(Enum):
    """What has to happen to a leased host now."""

    NOTHING = "nothing"
    END = "end"  # ask it to end
    KILL = "kill"


def due(deadline: float, lease: Lease, now: float) -> Due:
    """SIGTERM at deadline − grace − slack, SIGKILL at deadline − slack, so that nothing is left at the deadline."""
    if now >= deadline - lease.slack:
        return Due.KILL
    return Due.END if now >= deadline - lease.slack - lease.grace else Due.NOTHING


def next_look(deadline: float, lease: Lease, now: float) -> float:
    """When `due` may say something else."""
    match due(deadline, lease, now):
        case Due.NOTHING:
            return deadline - lease.slack - lease.grace
        case Due.END:
            return deadline - lease.slack
        case Due.KILL:
            return now + INSISTENT


class Fence:
    """Watches the leased hosts of one keeper. `end` asks a host to end within some seconds, `kill` does not ask."""

    def __init__(
        self,
        loop: Loop,
        hosts: Callable[[], Iterable[Hosted]],
        end: Callable[[Hosted, str, float], None],
        kill: Callable[[Hosted], None],
    ) -> None:
        self._loop, self._hosts = loop, hosts
        self._end, self._kill = end, kill
        self._timer: Timer | None = None
        self.deadline = 0.0  # in the past of every boot clock
        self._agreed: dict[str, float] = {}  # replica → until when other nodes let its host live, whatever Consul says

    def extend(self, deadline: float) -> None:
        """Leased hosts may live until then; what was known to be later stays."""
        self.deadline = max(self.deadline, deadline)
        self.look()

    def agree(self, replica: str, deadline: float) -> None:
        """The host of this replica may live until then; what was known to be later stays.

        What is due by now happens first: who slept past its end finds others that agree, but one of them may have run it meanwhile.
        """
        self.look()
        now = linux.now()
        self._agreed = {name: until for name, until in self._agreed.items() if until > now}
        self._agreed[replica] = max(self._agreed.get(replica, 0.0), deadline)
        self.look()

    @property
    def agreed(self) -> Mapping[str, float]:
        """Until when single hosts may live, whatever the deadline of the others."""
        return self._agreed

    def resume(self, deadline: float, agreed: Mapping[str, float]) -> None:
        """What the image of this keeper before us knew counts on."""
        self.deadline, self._agreed = deadline, dict(agreed)
        self.look()

    def first_kill(self) -> float:
        """When the first living host is killed if nobody extends its lease; infinite when none is to be."""
        hosts = [host for host in self._hosts() if host.alive and host.killed_at is None]
        return min(
            (self._deadline(host) - lease.slack for host in hosts if (lease := host.order.lease) is not None),
            default=math.inf,
        )

    def _deadline(self, host: Hosted) -> float:
        return max(self.deadline, self._agreed.get(host.order.replica, 0.0))

    def over(self, lease: Lease | None) -> bool:
        """Whether a host under this lease would be ended at once."""
        return lease is not None and due(self.deadline, lease, linux.now()) is not Due.NOTHING

    def look(self) -> None:
        """What is due happens, and the next look is set."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now, looks = linux.now(), list[float]()
        for host in list(self._hosts()):
            lease = host.order.lease
            if lease is None or not host.alive:
                continue
            deadline = self._deadline(host)
            match due(deadline, lease, now):
                case Due.END if not host.fenced:
                    self._end(host, EXPIRED, lease.grace)
                case Due.KILL:
                    if not host.fenced:
                        self._end(host, EXPIRED, 0.0)
                    self._kill(host)
            looks.append(next_look(deadline, lease, now) if host.killed_at is None else now + LONGEST_WAIT)
        if looks:
            self._timer = self._loop.at(max(now, min(*looks, now + LONGEST_WAIT)), self.look)
