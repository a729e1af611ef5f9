"""The bus of one node as a process of its own, for benches: `python -m tests.bench.bus_process FOLDER`. Ends with its input."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from agent.bus.edge import MachineBus
from agent.bus.store import ThreadStore
from agent.bus.table import Table
from agent.clock import SystemClock
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.keeper.protocol import Code, HostOrder
from agent.sdk.message import Subscription

HOST = HostOrder("shop.0", "shop", "a", "s", "python", Code("p", "1", "d", "/", "x:Y"), subscriptions=(("orders", ""),))


class Nobody:
    """There is no other node."""

    async def send(self, api: str, node: str, envelopes: object) -> None:
        raise AssertionError("nobody is there")


async def main(folder: Path) -> None:
    """Serve until standard input ends; any process may connect, and is a replica of `shop`."""
    clock = SystemClock()
    consul = MemoryConsul(Store(now=clock.now))
    store = ThreadStore(folder / "bus.sqlite")
    bus = MachineBus(folder / "bus.sock", store, cluster="c", node="a", consul=consul, peers=Nobody(), clock=clock)
    bus.bus.routes.remembered(Table({"shop": (Subscription("orders"),)}))
    serving = asyncio.create_task(bus.run(lambda pid: HOST, lambda code, detail: None), name="bus")
    await asyncio.to_thread(sys.stdin.read)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await bus.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
