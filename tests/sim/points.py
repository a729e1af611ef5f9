"""Every effect of a run, numbered, and trouble at one of them.

Trouble is the crash of a controller (who does it, else who leads), of an agent or of a keeper (on the node where it happens), at
the last moment before the effect or the first one after it: of what crashes nothing runs on, and whoever did it does not hear how
it ended. Or an answer is lost: it was done, or was not, and who asked for it goes on without knowing. Or something else happens
meanwhile, as the transition says: people commit, Consul goes away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast, get_args

from agent.consul.errors import UNAVAILABLE
from agent.errors import Waiting
from reconciler.model.desired import DesiredState
from reconciler.simulation.consul import SimConsul
from reconciler.simulation.virtual import Process, outside
from reconciler.simulation.world import World
from tests.sim.effects import Between, Kind, name_of, node_of

T = TypeVar("T")
When = Literal["before", "after"]
Trouble = Literal["controller", "agent", "keeper", "answer", "meanwhile"]
WHENS, TROUBLES = get_args(When), get_args(Trouble)
BACK = 2.0  # seconds after which a service manager has started again what crashed
LATE = 40.0  # … at every second point a controller comes back so late that another one must lead


@dataclass(frozen=True, slots=True)
class Point:
    """Trouble, and before or after which effect."""

    number: int
    when: When
    trouble: Trouble

    def __str__(self) -> str:
        return f"{self.number} {self.when} {self.trouble}"


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect of a run."""

    number: int
    who: str  # a life of an agent or a controller
    what: str
    troubles: tuple[Trouble, ...]  # that mean something there
    foreseen: bool = True  # whether there can be trouble before it

    def __str__(self) -> str:
        return f"{self.who} {self.what}"


class SteppedWorld(World):
    """A world that numbers the effects in it while `counts`, and makes trouble at one of them."""

    def __init__(self, point: Point | None, meanwhile: Callable[[], Coroutine[Any, Any, None]]) -> None:
        super().__init__()
        self._point, self._meanwhile = point, meanwhile
        self.pushed: Callable[[DesiredState], None] = lambda _: None
        self.counts = self.struck = False
        self.effects: list[Effect] = []
        self.troubles: list[asyncio.Task[None]] = []  # until what crashed is back
        self.victim = ""  # the agent, controller or node that the trouble befell
        self._gone: set[str] = set()  # lives that crashed
        self._dying: set[str] = set()  # agents and controllers of which a task may still wait to be cancelled
        self._over: set[str] = set()  # controllers that a script ended for good

    def handed(self, who: str, edge: T) -> T:
        return cast(T, Between(self, who, edge))

    def push(self, desired: DesiredState) -> None:
        self.pushed(desired)
        super().push(desired)

    async def crash_controller(self, name: str, *, its_consul: bool = False) -> None:
        self._over.add(name)
        if name in self.controllers:
            self._gone.add(self.controllers[name].id)
            await super().crash_controller(name, its_consul=its_consul)

    async def crash_agent(self, name: str) -> None:
        self._gone.add(self.nodes[name].process.name)
        await super().crash_agent(name)

    async def effect(self, who: str, kind: Kind, what: str, do: Callable[[], Awaitable[T]]) -> T:
        """What `do` returns, unless there is trouble just here."""
        if not self.counts or who in self._gone:
            return await do()
        effect = Effect(len(self.effects), who, what, tuple(self._means_something(who, kind)))
        self.effects.append(effect)
        point = self._point
        if point is None or point.number != effect.number:
            return await do()
        if point.when == "before":
            await self._strike(point, effect, kind)
            return await do()
        try:
            return await do()
        finally:
            await self._strike(point, effect, kind)

    def happened(self, node: str, what: str) -> None:
        """The keeper of this node has done something by itself; there is only trouble after that."""
        if not self.counts:
            return
        effect = Effect(len(self.effects), f"keeper of {node}", what, tuple(self._means_something(node, None)), False)
        self.effects.append(effect)
        point = self._point
        if point is not None and point.number == effect.number:
            self.struck = True
            self._begin(point.trouble, node)

    def _means_something(self, who: str, kind: Kind | None) -> Iterator[Trouble]:
        node = who if who in self.nodes else name_of(who)
        yield "meanwhile"
        if node not in self.nodes or self._leads():
            yield "controller"
        if node in self.nodes or (kind is not None and kind.over == "nodes"):
            yield "agent"
        if node in self.nodes and not self.nodes[node].machine.keeper_away:
            yield "keeper"
        if kind is not None and kind.over:
            yield "answer"

    async def _strike(self, point: Point, effect: Effect, kind: Kind) -> None:
        """The trouble happens; of who crashes in the middle of this, nothing goes on."""
        self.struck = True
        if point.trouble == "answer":
            self.victim = name_of(effect.who)
            raise Waiting("the answer was lost", code=UNAVAILABLE)
        begun = self._begin(point.trouble, name_of(effect.who), node_of(effect.what))
        if point.trouble == "meanwhile":
            await asyncio.sleep(0)  # it begins
        while self.victim in self._dying and not begun.done():
            await asyncio.sleep(0)  # whoever waits here in a process that crashed is no more
        if effect.who in self._gone or (kind.keeper and point.trouble == "keeper"):
            raise Waiting("it went away")

    def _begin(self, trouble: Trouble, who: str, other: str = "") -> asyncio.Task[None]:
        """The trouble of this agent or controller, or of the node it speaks to."""
        if trouble == "meanwhile":
            return self._later(self._meanwhile())
        if trouble == "keeper":
            self.victim = who
            self.nodes[who].machine.lose_keeper()
            return self._later(self._keeper_back(who))
        if trouble == "agent":
            self.victim = who if who in self.nodes else other
            return self._stop(self.victim, self._agent_dies)
        self.victim = self._leads() if who in self.nodes else who
        return self._stop(self.victim, self._controller_dies)

    def _leads(self) -> str:
        return next((name for name, each in self.controllers.items() if each.loop.board.term is not None), "")

    def _stop(self, victim: str, dies: Callable[[str], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Nothing of it runs or is heard from here on."""
        process, consul = self._process(victim)
        process.pause()
        if consul is not None:
            consul.cut = True
        self._gone.add(process.name)
        self._dying.add(victim)
        return self._later(dies(victim))

    def _process(self, victim: str) -> tuple[Process, SimConsul | None]:
        if victim in self.nodes:
            return self.nodes[victim].process, self.nodes[victim].consul
        return self.controllers[victim].process, self.controllers[victim].consul

    def _later(self, trouble: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = outside(trouble, "trouble")
        self.troubles.append(task)
        return task

    async def _agent_dies(self, name: str) -> None:
        life = self.nodes[name].process.name
        await self.crash_agent(name)
        self._dying.discard(name)
        await asyncio.sleep(BACK)
        node = self.nodes[name]
        if node.machine.up and node.agent is None and node.process.name == life:
            self.start_agent(name)

    async def _controller_dies(self, name: str) -> None:
        if name in self.controllers:
            await super().crash_controller(name)
        self._dying.discard(name)
        assert self._point is not None
        await asyncio.sleep(LATE if self._point.number % 2 else BACK)
        if name not in self.controllers and name not in self._over:
            self.start_controller(name)

    async def _keeper_back(self, name: str) -> None:
        await asyncio.sleep(BACK)
        self.nodes[name].machine.keeper_away = False
