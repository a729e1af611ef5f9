"""What a keeper remembers of one host."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent.keeper import codec
from agent.keeper.protocol import HostOrder, HostRow

if TYPE_CHECKING:
    from agent.keeper.channel import Channel
    from agent.keeper.loop import Timer

# values of agent.wire.ReplicaState, which the keeper does not import
STARTING, STARTED, STOPPING, STOPPED, BACKOFF, FAILED = (
    "Starting",
    "Started",
    "Stopping",
    "Stopped",
    "Backoff",
    "Failed",
)
RUNNING = frozenset({STARTING, STARTED, STOPPING})


@dataclass(slots=True, eq=False)
class Hosted:
    """One host: its row, and what it takes to watch its process. Only the supervisor changes it."""

    order: HostOrder
    order_text: str = ""
    state: str = STARTING
    healthy: bool = False
    since: float = 0.0
    started_at: str = ""
    pid: int | None = None
    start_time: int | None = None
    restarts: int = 0
    last_error: str = ""
    retry_at: float | None = None
    host_state: str = ""
    fenced: str = ""
    crashes: tuple[float, ...] = ()
    launch: str = ""  # marker of the last launch; every process of it carries it
    whole: bool = True  # False when the order was rebuilt from markers and cannot start anything
    # not stored:
    own: bool = False  # our child: we get its exit status
    descriptor: int | None = None  # pidfd
    channel: Channel | None = None
    timer: Timer | None = None
    wanted: HostOrder | None = None  # start this when the process is gone
    ending: bool = False  # its process is being ended because somebody asked
    ended: tuple[int, float] | None = None  # pid and time of the process that ended last
    cause: str = ""  # why the host says it failed
    final: bool = False  # it says that starting again is useless
    status: int | None = None  # wait status of the process, once it ended
    killed_at: float | None = None  # since when it should be dead
    on_way: bool = False  # handed to the zygote; no pid yet
    seen: tuple[Any, ...] = field(default=())  # what listeners were told last

    def take(self, order: HostOrder) -> None:
        """This order is the one in force."""
        self.order, self.order_text, self.whole = order, codec.order_text(order), True

    @property
    def alive(self) -> bool:
        """A process may exist: known by pid, or on its way."""
        return self.pid is not None or self.on_way

    def plain(self) -> dict[str, Any]:
        """The fields of its HostRow without the order."""
        return {
            "replica": self.order.replica,
            "spec_hash": self.order.spec_hash,
            "state": self.state,
            "healthy": self.healthy,
            "since": self.since,
            "started_at": self.started_at,
            "pid": self.pid,
            "start_time": self.start_time,
            "restarts": self.restarts,
            "last_error": self.last_error,
            "retry_at": self.retry_at,
            "host_state": self.host_state,
            "fenced": self.fenced,
        }

    def row_text(self) -> str:
        """The JSON of its HostRow."""
        return _with_order(self.plain(), self.order_text)

    def stored_text(self) -> str:
        """The JSON that a later keeper needs to take over."""
        kept = {"launch": self.launch, "crashes": self.crashes, "whole": self.whole}
        return _with_order({**self.plain(), **kept}, self.order_text)

    def row(self) -> HostRow:
        return HostRow(**self.plain(), order=self.order)


def _with_order(fields: dict[str, Any], order: str) -> str:
    return f'{json.dumps(fields, separators=(",", ":"), ensure_ascii=False)[:-1]},"order":{order}}}'


def restored(raw: dict[str, Any]) -> Hosted:
    """The host that `stored_text` described. KeyError, TypeError or Invalid when it does not fit."""
    host = Hosted(order=codec.order_from(raw["order"]))
    for name in ("state", "healthy", "since", "started_at", "pid", "start_time", "restarts", "last_error", "retry_at"):
        setattr(host, name, raw[name])
    for name in ("host_state", "launch", "whole"):
        setattr(host, name, raw[name])
    host.fenced = str(raw.get("fenced", ""))  # a keeper from before leases did not write it
    host.crashes = tuple(float(crash) for crash in raw["crashes"])
    host.order_text = codec.order_text(host.order)
    return host
