"""Everything an agent touches outside itself, as constructor arguments: the same agent runs on a machine and in a simulation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from agent.bus.edge import NoBus, NodeBus
from agent.clock import Clock
from agent.consul.protocol import Consul
from agent.keeper.protocol import Keeper
from agent.leases.peers import Nobody, Peers
from agent.ledger import Ledger
from agent.packages.protocol import Installer
from agent.processes import Processes
from agent.wire import Capacity, HealthCheck


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What one agent is told about itself. Seconds."""

    cluster: str
    node: str
    api: str  # URL under which others reach its node API
    address: str = ""  # address of its replicas in Consul
    version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: Capacity = Capacity()
    logs: str = "logs"  # folder of the replicas' log files
    replicas: str = ""  # folder in which each replica may have one of its own
    beat_ttl: float = 15.0
    verify_every: float = 3600.0  # between two readings of every installed package
    look_every: float = 30.0  # between two looks at what processes there are
    linger: float = 0.005  # between a change and the answer to a waiting reader
    env_by_hand: Mapping[str, str] = field(default_factory=dict)  # of hosts that are started at the node API
    about: Mapping[str, str] = field(default_factory=dict)  # for people: host name, data folder, pid


class Ports(Protocol):
    """Chooses TCP ports of this machine."""

    def choose(self, preferred: int | None, taken: Collection[int]) -> int:
        """`preferred` if nobody listens there, else the next free one that is not in `taken`; raises Waiting (NO_PORT)."""
        ...


class Prober(Protocol):
    """Asks a replica whether it is well, beyond what its host says."""

    async def probe(self, check: HealthCheck, port: int, env: Mapping[str, str]) -> str:
        """What is wrong, or an empty text; never raises for a failed probe, ends within the check's timeout."""
        ...


@dataclass(frozen=True, slots=True)
class Edges:
    """The world of one agent."""

    clock: Clock
    consul: Consul
    keeper: Keeper
    ledger: Ledger
    installer: Installer
    ports: Ports
    prober: Prober
    uniform: Callable[[float, float], float]  # a random number between two, for jitter
    agent: str  # another one each time an agent starts
    boot_id: str
    bus: NodeBus = field(default_factory=NoBus)
    peers: Peers = field(default_factory=Nobody)  # agents of other nodes
    processes: Processes | None = None  # there may be no machine to look at
