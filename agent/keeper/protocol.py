"""PUBLIC: what an agent asks of its keeper, and what it hears back. Standard library only: the keeper imports nothing else.

On the socket both travel as one JSON object a line; `HostOrder(**json)` and `dataclasses.asdict` are the whole codec.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

SANDBOX_DEGRADED = "SANDBOX_DEGRADED"
BY_HAND = "tdie-manual"  # the instance of hosts that people start at a node


@dataclass(frozen=True, slots=True)
class Code:
    """Where an installed package's class is: absolute content root, `module:Class`."""

    name: str
    version: str
    digest: str
    content_root: str
    component_type: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lease:
    """What a leased host holds: a token for what it writes to, and how it is ended when nobody extends the lease. Seconds.

    It is asked to end `grace + slack` before the deadline of this keeper's leases, or a later one of its own; it is killed `slack`
    before.
    """

    epoch: int
    index: int
    grace: float
    slack: float

    @property
    def token(self) -> str:
        return f"{self.epoch}.{self.index}"


@dataclass(frozen=True, slots=True)
class HostOrder:
    """Everything a keeper needs to start one host and to start it again after a crash or without its agent."""

    replica: str
    instance: str
    node: str
    spec_hash: str
    runtime: Literal["python", "exec"]
    component: Code  # for exec: its content root is the working directory
    publisher: Code | None = None
    subscriptions: tuple[tuple[str, str], ...] = ()  # topic, and type or "" for all
    bus: str = ""  # socket of the node's bus
    command: tuple[str, ...] = ()  # exec only; {settings…} already filled in
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    log: str = ""  # file that stdout, stderr and the logger append to
    cpu: float | None = None
    memory: int | None = None
    stop_grace: float = 10.0
    restart_attempts: int = 2
    restart_interval: float = 1800.0
    restart_delay: float = 15.0
    restart_mode: Literal["fail", "delay"] = "fail"
    correlation_id: str = ""
    data: str = ""  # folder of the replica's own on this node; made when it is needed
    check_interval: float = 0.0  # seconds between questions to the component itself how it is; 0: it is not asked
    check_timeout: float = 0.0
    awaiting: bool = False  # it loads nothing until it is configured through its own API
    python: str = ""  # interpreter of the packages' own environment; empty for the agent's, forked by the zygote
    lease: Lease | None = None  # it may live only as long as its agent extends the leases of this node


@dataclass(frozen=True, slots=True)
class HostRow:
    """One host as its keeper sees it now. Times are CLOCK_BOOTTIME seconds."""

    replica: str
    spec_hash: str
    state: str  # a value of agent.wire.ReplicaState
    healthy: bool  # Started, and component and publisher say so too
    since: float  # when state or healthy last changed
    order: HostOrder
    started_at: str = ""  # ISO 8601, of the last start
    pid: int | None = None
    start_time: int | None = None  # field 22 of /proc/PID/stat: with boot id the identity of the process
    restarts: int = 0
    last_error: str = ""
    retry_at: float | None = None
    host_state: str = ""  # the host's own state (AwaitingConfiguration … Destroyed)
    fenced: str = ""  # code of what ended its lease: it is ended for that, and with Stopped nothing of it is left


class Keeper(Protocol):
    """The keeper of this node, as its agent uses it. Raises Waiting when it cannot be reached."""

    async def start(self, order: HostOrder) -> None:
        """A host for this order is being started; replaces the order of a stopped or failed host of that replica."""
        ...

    async def stop(self, replica: str) -> None:
        """The host is being stopped (grace, then SIGKILL to its whole group); its row ends in Stopped. Idempotent."""
        ...

    async def reconfigure(self, order: HostOrder) -> None:
        """Same package, other settings: in the same host, same PID (an exec host is stopped and started)."""
        ...

    async def adjust(self, order: HostOrder) -> None:
        """Take over restart policy, grace and log settings of a running host; its process is not touched."""
        ...

    async def rename(self, replica: str, order: HostOrder) -> None:
        """The running host of `replica` is from now on that of `order.replica`; its process is not touched."""
        ...

    async def forget(self, replica: str) -> None:
        """Drop the row of a host that is not running any more."""
        ...

    async def extend(self, deadline: float) -> None:
        """Leased hosts may live until then (CLOCK_BOOTTIME seconds); an earlier deadline than the one known changes nothing."""
        ...

    async def agree(self, replica: str, deadline: float) -> None:
        """This leased host may live until then, whatever the deadline of the others; it does not start under that."""
        ...

    async def fence(self, replica: str, code: str) -> None:
        """The leased host is ended now, within the grace of its lease, and not started again. Nothing for any other."""
        ...

    async def rows(self) -> tuple[HostRow, ...]: ...

    async def problems(self) -> Mapping[str, str]:
        """What is wrong with the keeper itself: stable code → sentence; SANDBOX_DEGRADED when limits are not whole."""
        ...

    def events(self) -> AsyncIterator[HostRow]:
        """Every row once, then each row whenever it changes; ends with Waiting when the keeper is gone."""
        ...
