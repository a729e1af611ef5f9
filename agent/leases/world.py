"""What the life of one lease sees of its node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from agent.clock import Clock
from agent.consul.protocol import Consul
from agent.keeper.protocol import HostRow, Keeper
from agent.leases.peers import Peers
from agent.leases.promises import Promises
from agent.leases.session import Session


class World(Protocol):
    """The node's edges, its session, and what is ordered and runs there."""

    cluster: str
    node: str
    consul: Consul
    keeper: Keeper
    clock: Clock
    session: Session
    peers: Peers
    promises: Promises
    uniform: Callable[[float, float], float]

    def epoch(self) -> int:
        """The latest leadership that this node has heard of."""
        ...

    def known(self) -> bool:
        """Whether the keeper's rows are known."""
        ...

    def row(self, replica: str) -> HostRow | None: ...

    def down(self, replica: str) -> bool:
        """Whether it is proven that nothing of its host is left."""
        ...

    def runs_leased(self, replica: str) -> bool:
        """Whether something may run that needs the lease."""
        ...

    def wanted(self, replica: str) -> bool:
        """Whether the replica is ordered here, and under a lease."""
        ...

    def failsafe(self, replica: str) -> bool:
        """Whether it is ordered here, and may outlive the session by agreement."""
        ...

    def refused(self) -> int:
        """How many locks are nobody's and yet not given to this node, and are left alone for the moment."""
        ...

    async def members(self) -> Mapping[str, str]:
        """All nodes of the cluster that Consul knows of, this one among them, with the addresses of their APIs."""
        ...

    async def passing(self) -> Mapping[str, str]:
        """Those of them that Consul shows as well."""
        ...

    def changed(self, replica: str) -> None: ...
