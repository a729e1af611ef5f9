"""A whole world in one event loop: Git, Consul, machines, agents and controllers, with the real loop and the real agents."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.edges import Edges as AgentEdges
from agent.edges import NodeSettings
from agent.errors import TdieError, Waiting
from agent.ledger import MemoryLedger
from agent.node import Agent
from agent.wire import Accepted, Assignment, Claim, Claimed, Report
from reconciler.board import Board
from reconciler.edges import Edges
from reconciler.execution.leadership import Leadership
from reconciler.loop import Loop
from reconciler.model.desired import DesiredState
from reconciler.simulation.hosts import Machine, Nobody, SimInstaller, SimKeeper, SimPorts, SimProber, Witness
from reconciler.simulation.virtual import VirtualClock, VirtualLoop
from reconciler.source.sourced import Sourced
from reconciler.wakeups import Wakeups

CLUSTER = "sim"
LATENCY = 0.002  # seconds of one call between a controller and an agent


class SimSource:
    """Git as the loop sees it: whatever was pushed last, or trouble."""

    def __init__(self) -> None:
        self.sourced = Sourced(None)
        self.look_takes = 0.0  # seconds
        self._moved = asyncio.Event()

    def push(self, sourced: Sourced) -> None:
        """This is what a look at Git brings from now on."""
        self.sourced = sourced
        self._moved.set()

    async def look(self, *, fetch: bool = True) -> Sourced:
        found = self.sourced
        await asyncio.sleep(self.look_takes)
        return found

    async def changed(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(50.0):
                await self._moved.wait()
        self._moved.clear()

    async def start_from(self, commit: str) -> None:
        return None


@dataclass(slots=True)
class Node:
    """One machine with what it remembers, and its agent while that runs."""

    machine: Machine
    ledger: MemoryLedger = field(default_factory=MemoryLedger)
    consul: MemoryConsul | None = None
    agent: Agent | None = None
    task: asyncio.Task[None] | None = None
    starts: int = 0
    cut: bool = False  # no way between it and the controllers
    consul_cut: bool = False  # … nor between it and Consul
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # set whenever waiting callers must look again

    def moved(self) -> None:
        """Ways opened or closed, or the agent is another one."""
        self.gone.set()
        self.gone = asyncio.Event()


class SimNodes:
    """The network between one controller and the agents."""

    def __init__(self, nodes: dict[str, Node], world: World | None = None) -> None:
        self._nodes = nodes
        self._world = world
        self.cut = False  # this controller reaches nobody

    async def claim(self, api: str, claim: Claim) -> Claimed:
        return await (await self._reach(api)).claim(claim)

    async def assign(self, api: str, assignment: Assignment) -> Accepted:
        called = await self._reach(api)
        before = called.assignment
        accepted = await called.assign(assignment)
        if self._world is not None:
            self._world.accepted(api.removeprefix("sim://"), before, assignment)
            if self._world.random.random() < self._world.lossy:
                raise Waiting(f"{api} does not answer")  # it did what it was told, and nobody hears of it
        return accepted

    async def report(self, api: str, index: int, wait: float, agent: str) -> Report:
        called = await self._reach(api)
        answer = asyncio.ensure_future(called.report(index, wait, agent))
        try:
            while not answer.done():
                gone = asyncio.ensure_future(self._nodes[api.removeprefix("sim://")].gone.wait())
                await asyncio.wait([answer, gone], return_when=asyncio.FIRST_COMPLETED)
                gone.cancel()
                if (await self._reach(api)) is not called:
                    raise Waiting(f"{api} went away")
            return answer.result()
        finally:
            answer.cancel()

    async def logs(self, api: str, replica: str, lines: int) -> str:
        await self._reach(api)
        return ""

    async def kill(self, api: str, package: str, replica: str) -> None:
        await self._reach(api)
        self._nodes[api.removeprefix("sim://")].machine.kill_host(replica)

    async def close(self) -> None:
        return None

    async def _reach(self, api: str) -> Agent:
        await asyncio.sleep(LATENCY)
        node = self._nodes[api.removeprefix("sim://")]
        if self.cut or node.cut or node.agent is None or not node.machine.up:
            raise Waiting(f"{api} does not answer")
        return node.agent


@dataclass(slots=True)
class Controller:
    """One controller that runs in this world."""

    loop: Loop
    consul: MemoryConsul
    net: SimNodes
    task: asyncio.Task[None]
    consul_cut: bool = False


class World:
    """Everything of one simulation. Same seed, same history."""

    def __init__(self, seed: int = 0) -> None:
        running = asyncio.get_running_loop()
        assert isinstance(running, VirtualLoop)
        self.clock = VirtualClock(running)
        self.random = random.Random(seed)
        self.store = Store(now=self.clock.now, new_id=lambda: f"{self.random.getrandbits(64):016x}")
        self.source = SimSource()
        self.nodes: dict[str, Node] = {}
        self.controllers: dict[str, Controller] = {}
        self.missing: set[str] = set()  # packages (name@version) that nobody serves
        self.lossy = 0.0  # how often the answer to an assignment is lost
        self.witness: Witness = Nobody()
        self.accepted: Callable[[str, Assignment | None, Assignment], None] = lambda _node, _before, _after: None
        self._consul_away = False

    # ------------------------------------------------------------------------------------------- machines

    def add_machine(self, name: str) -> Node:
        """A machine that is up, without an agent yet."""
        node = self.nodes[name] = Node(Machine(name, self.clock, witness=self.witness))
        return node

    def start_agent(self, name: str) -> None:
        """An agent starts on the machine, with what its ledger remembers."""
        node = self.nodes[name]
        node.starts += 1
        node.consul = MemoryConsul(self.store)
        node.consul.cut = self._consul_away or node.consul_cut
        settings = NodeSettings(cluster=CLUSTER, node=name, api=f"sim://{name}", address=name)
        node.agent = Agent(
            settings,
            AgentEdges(
                clock=self.clock,
                consul=node.consul,
                keeper=SimKeeper(node.machine),
                ledger=node.ledger,
                installer=SimInstaller(node.machine, self.missing),
                ports=SimPorts(),
                prober=SimProber(),
                uniform=self.random.uniform,
                agent=f"{name}-{node.starts}",
                boot_id=f"{name}-boot-{node.machine.boot}",
            ),
        )
        node.task = asyncio.create_task(node.agent.run(), name=f"agent {name}")
        node.moved()

    async def crash_agent(self, name: str) -> None:
        """The agent is gone from one moment to the next; its hosts go on."""
        node = self.nodes[name]
        if node.consul is not None:
            node.consul.cut = True  # nothing it does while it ends reaches Consul
        await _end(node.task)
        node.agent = node.task = None
        self.witness.off(name)
        node.moved()

    async def power_off(self, name: str) -> None:
        """The machine dies with everything on it."""
        self.nodes[name].machine.power_off()
        await self.crash_agent(name)

    def power_on(self, name: str) -> None:
        """The machine boots again and its agent starts."""
        self.nodes[name].machine.up = True
        self.start_agent(name)

    def cut(self, name: str, *, consul: bool) -> None:
        """No way to the controllers any more, and none to Consul if so asked."""
        node = self.nodes[name]
        node.cut, node.consul_cut = True, node.consul_cut or consul
        self.witness.off(name)
        self._apply_cuts()
        node.moved()

    def cut_consul(self, name: str) -> None:
        """No way to Consul any more; controllers still reach the node."""
        self.nodes[name].consul_cut = True
        self._apply_cuts()

    def wipe_consul(self) -> None:
        """Consul lost all its data, its indexes begin anew, and whoever waits for it hears that it went away."""
        self.store = Store(now=self.clock.now, new_id=lambda: f"{self.random.getrandbits(64):016x}")
        clients = [node.consul for node in self.nodes.values()] + [c.consul for c in self.controllers.values()]
        for client in clients:
            if client is not None:
                client.store, before = self.store, client.cut
                client.cut = True
                client.cut = before

    def heal(self, name: str) -> None:
        """All ways are open again."""
        node = self.nodes[name]
        node.cut = node.consul_cut = False
        self._apply_cuts()
        node.moved()

    def consul_away(self, away: bool) -> None:
        """Nobody reaches Consul any more, or everybody does again."""
        self._consul_away = away
        self._apply_cuts()

    def cut_controller(self, name: str, *, consul: bool, nodes: bool) -> None:
        """These ways of a controller are closed, the others open."""
        controller = self.controllers[name]
        controller.consul_cut, controller.net.cut = consul, nodes
        self._apply_cuts()
        for node in self.nodes.values():
            node.moved()

    def _apply_cuts(self) -> None:
        for node in self.nodes.values():
            if node.consul is not None and node.agent is not None:
                node.consul.cut = self._consul_away or node.consul_cut
        for controller in self.controllers.values():
            controller.consul.cut = self._consul_away or controller.consul_cut

    # ------------------------------------------------------------------------------------------- controllers

    def start_controller(self, name: str) -> Loop:
        """A controller runs; the first one leads."""
        consul, net = MemoryConsul(self.store), SimNodes(self.nodes, self)
        consul.cut = self._consul_away
        edges = Edges(self.source, consul, net, self.clock, lambda digest: f"sim://packages/{digest}")
        leadership = Leadership(CLUSTER, name, f"sim://{name}", consul=consul, clock=self.clock)
        loop = Loop(CLUSTER, edges, leadership, Board(CLUSTER, self.clock), Wakeups())
        task = asyncio.create_task(loop.run(), name=f"controller {name}")
        self.controllers[name] = Controller(loop, consul, net, task)
        return loop

    async def crash_controller(self, name: str) -> None:
        """The controller is gone from one moment to the next."""
        controller = self.controllers.pop(name)
        controller.consul.cut = True
        await _end(controller.task)

    def leader(self) -> Loop | None:
        """The controller that leads, if one does."""
        return next((c.loop for c in self.controllers.values() if c.loop.board.term is not None), None)

    def push(self, desired: DesiredState) -> None:
        """A commit arrives."""
        self.source.push(Sourced(desired, desired.commit))

    async def until(self, true: object, limit: float) -> float:
        """Seconds until `true()` holds; TimeoutError after `limit` simulated seconds."""
        assert callable(true)
        start = self.clock.now()
        while not true():
            if self.clock.now() - start > limit:
                raise TimeoutError
            await asyncio.sleep(0.05)
        return self.clock.now() - start

    async def close(self) -> None:
        """Everything ends."""
        for name in list(self.controllers):
            await self.crash_controller(name)
        for name in self.nodes:
            await self.crash_agent(name)


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is None:
        return
    task.cancel()
    with suppress(asyncio.CancelledError, TdieError, BaseExceptionGroup):
        await task
