"""The bus as an agent sees it, and as it is put together on a machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from agent.bus.bus import Bus
from agent.bus.deliver import Deliverer, Peers
from agent.bus.directory import ConsulDirectory
from agent.bus.lanes import Lane
from agent.bus.routes import Routes
from agent.bus.sessions import HostOf, Sessions
from agent.bus.store import Store
from agent.bus.values import NOBODY, Limits
from agent.clock import Clock
from agent.consul.protocol import Consul
from agent.errors import TdieError
from agent.sdk.message import Subscription

Problem = Callable[[str, str], None]


class NodeBus(Protocol):
    """The bus of an agent's node."""

    @property
    def socket(self) -> str:
        """Where hosts connect; empty when there is no bus."""
        ...

    async def run(self, host_of: HostOf, problem: Problem) -> None:
        """Serve for ever."""
        ...

    def know_local(self, local: Mapping[str, tuple[Subscription, ...]]) -> None:
        """What the instances subscribe to that this node was told to run."""
        ...

    async def close(self) -> None: ...


class NoBus:
    """For agents without hosts that publish: in simulations."""

    socket = ""

    async def run(self, host_of: HostOf, problem: Problem) -> None:
        await asyncio.Event().wait()

    def know_local(self, local: Mapping[str, tuple[Subscription, ...]]) -> None:
        """Nobody asks."""

    async def close(self) -> None:
        """Nothing is open."""


class MachineBus:
    """Implements NodeBus: a file and a socket in a data folder."""

    def __init__(
        self, socket: Path, store: Store, *, cluster: str, node: str, consul: Consul, peers: Peers, clock: Clock,
        limits: Limits | None = None,
    ) -> None:  # fmt: skip
        self.socket = str(socket)
        self._store = store
        self._problem: Problem = lambda code, detail: None
        self.bus = Bus(
            limits or Limits(),
            store=store,
            clock=clock,
            routes=Routes(),
            problem=lambda code, detail: self._problem(code, detail),
        )
        self._directory = ConsulDirectory(cluster, node, consul=consul, store=store, clock=clock)
        self._deliverer = Deliverer(self.bus, self._directory, peers)

    async def run(self, host_of: HostOf, problem: Problem) -> None:
        self._problem = problem
        lanes: asyncio.Queue[Lane] = asyncio.Queue()
        await self.bus.open(lanes.put_nowait)
        await self._remembered()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Sessions(Path(self.socket), self.bus, host_of).run(), name="bus socket")
            tasks.create_task(self._directory.watch(self.bus.know), name="who subscribes")
            tasks.create_task(self.bus.keep_house(), name="bus upkeep")
            while True:
                lane = await lanes.get()
                if lane.instance != NOBODY:
                    tasks.create_task(self._deliverer.serve(lane), name=f"bus lane {lane.instance}")

    async def _remembered(self) -> None:
        try:
            if (table := await self._directory.load()) is not None:
                self.bus.routes.remembered(table)
        except (TdieError, ValueError) as error:
            self._problem("BUS_REBUILT", f"what was remembered of other nodes makes no sense: {error}")

    def know_local(self, local: Mapping[str, tuple[Subscription, ...]]) -> None:
        self.bus.know_local(local)

    async def close(self) -> None:
        await self._store.close()
