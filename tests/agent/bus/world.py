"""Buses of several nodes on virtual time, with faults between them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from agent.bus import people
from agent.bus.bus import Bus
from agent.bus.deliver import Deliverer
from agent.bus.file import BusFile
from agent.bus.lanes import Consumer, Lane
from agent.bus.routes import Routes
from agent.bus.table import Table
from agent.bus.values import NOBODY, Delivery, Envelope, Limits
from agent.errors import Waiting
from agent.sdk.message import Subscription
from reconciler.simulation.virtual import VirtualClock, VirtualLoop, run

T = TypeVar("T")
ORDERS = {"shop": (Subscription("orders"),), "audit": (Subscription("orders", "New"),)}


class InlineStore:
    """A store whose work is done at once; `broken` makes it fail, `disk` says how often it had to be on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.broken = False
        self.disk = 0
        self.file: BusFile | None = None

    async def open(self) -> str:
        self.file = BusFile(self._path)
        return self.file.rebuilt

    def do(self, work: Callable[[BusFile], T], *, durable: bool = False) -> asyncio.Future[T]:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        assert self.file is not None
        self.file.begin(durable=durable)
        try:
            if self.broken:
                raise Waiting("the disk is full", code="BUS_WRITE")
            answer.set_result(work(self.file))
            self.file.commit()
            self.disk += durable
        except Waiting as error:
            self.file.rollback()
            answer.set_exception(error)
        return answer

    async def close(self) -> None:
        if self.file is not None:
            self.file.close()


@dataclass
class World:
    """Buses of some nodes, and the way between them."""

    folder: Path
    clock: VirtualClock
    limits: Limits = field(default_factory=Limits)
    nodes: dict[str, Node] = field(default_factory=dict)
    where: dict[str, list[str]] = field(default_factory=dict)  # instance → nodes Consul names
    unreachable: set[str] = field(default_factory=set)
    answer_takes: float = 0.01
    no_answer: set[str] = field(default_factory=set)  # they take it, and the answer is lost

    async def node(self, name: str = "a", table: Mapping[str, Any] | None = ORDERS) -> Node:
        made = self.nodes[name] = Node(self, name)
        await made.start()
        if table is not None:
            made.bus.know(Table(dict(table)))
        return made

    async def stop(self) -> None:
        for node in self.nodes.values():
            await node.stop()


class Node:
    """One bus that runs, with replicas that take messages."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.store = InlineStore(world.folder / f"{name}.sqlite")
        self.problems: dict[str, str] = {}
        self.got: list[tuple[str, str]] = []  # replica and message id
        self.bus = Bus(world.limits, store=self.store, clock=world.clock, routes=Routes(), problem=self._problem)
        self.tasks: list[asyncio.Task[None]] = []
        self.done: list[tuple[str, str]] = []  # instance and id of what a replica has worked on
        self.dead = False

    def _problem(self, code: str, detail: str) -> None:
        self.problems.pop(code, None)
        if detail:
            self.problems[code] = detail

    async def start(self) -> None:
        deliverer = Deliverer(self.bus, self, self)

        def began(lane: Lane) -> None:
            if lane.instance != NOBODY:
                self.tasks.append(asyncio.create_task(deliverer.serve(lane)))

        await self.bus.open(began)
        self.tasks.append(asyncio.create_task(self.bus.keep_house()))

    async def stop(self) -> None:
        """The program is gone at once; what its file holds stays."""
        if self.dead:
            return
        self.dead = True
        for task in self.tasks:
            task.cancel()
        for result in await asyncio.gather(*self.tasks, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result
        await self.store.close()

    async def nodes(self, instance: str) -> Mapping[str, str]:
        return {name: name for name in self.world.where.get(instance, ()) if name != self.name}

    async def send(self, api: str, node: str, envelopes: Sequence[Envelope]) -> None:
        assert api == node
        await asyncio.sleep(0.01)
        if api in self.world.unreachable or self.world.nodes[api].dead:
            raise Waiting(f"{api} cannot be reached")
        asked = self.world.nodes[api]
        await asked.bus.take_over([replace(e, body=bytes(e.body)) for e in envelopes])
        await asyncio.sleep(self.world.answer_takes)
        if api in self.world.no_answer or self.world.nodes[api] is not asked:
            raise Waiting(f"{api} does not answer")

    async def publish(self, *ids: str, topic: str = "orders", type: str = "New", size: int = 10) -> None:
        await (await self.bus.accept([Envelope(id, topic, type, id.encode() + b" " * size) for id in ids]))

    def consumer(self, instance: str, replica: str = "", window: int = 2, outcome: str = "done") -> Consumer:
        """A replica that answers each message 0.1 s later with `done`, any error, or never (an empty outcome)."""
        who = replica or f"{instance}.0"

        def give(number: int, delivery: Delivery, body: bytes) -> None:
            self.got.append((who, body.decode().strip()))
            if outcome:
                asyncio.get_running_loop().call_later(0.1, answer, number)

        def answer(number: int) -> None:
            if self.dead or number not in made.held:
                return
            if outcome == "done":
                self.done.append((instance, made.held[number].id))
                self.bus.done(made, number)
            else:
                self.bus.failed(made, number, outcome)

        made = Consumer(instance, window, give)
        self.bus.join(made)
        return made

    def ids(self, replica: str) -> list[str]:
        return [id for who, id in self.got if who == replica]

    def left(self) -> list[tuple[str, str]]:
        return sorted((d.instance, d.id) for d in people.everything(self.bus))


def story(tmp_path: Path, body: Callable[[World], Awaitable[None]], limits: Limits | None = None) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        world = World(tmp_path, VirtualClock(loop), limits or Limits())
        try:
            await body(world)
        finally:
            await world.stop()

    run(main())


async def until(condition: Callable[[], bool], patience: float = 2000.0) -> None:
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.05)
