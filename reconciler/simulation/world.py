"""A whole world in one event loop: Git, Consul, machines, agents and controllers, with the real loop and the real agents."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from agent import keys
from agent.consul.embedded.sessions import TTL_MULTIPLIER
from agent.consul.embedded.store import Store
from agent.edges import Edges as AgentEdges
from agent.edges import NodeSettings
from agent.node import Agent
from agent.register import NameTaken
from reconciler.board import Board
from reconciler.edges import Edges
from reconciler.execution.leadership import Leadership
from reconciler.loop import Loop
from reconciler.model.desired import DesiredState
from reconciler.simulation.consul import SimConsul
from reconciler.simulation.disk import SimInstaller, SimPorts, SimProber
from reconciler.simulation.keeper import SimKeeper
from reconciler.simulation.machine import Machine
from reconciler.simulation.network import SENDER, UNNOTICED, Node, SimNodes, SimPeers
from reconciler.simulation.servers import Servers
from reconciler.simulation.source import SimSource
from reconciler.simulation.virtual import Process, VirtualClock, VirtualLoop, later
from reconciler.simulation.watchers import LooksAway, Watcher
from reconciler.source.sourced import Sourced
from reconciler.wakeups import Wakeups

T = TypeVar("T")

CLUSTER = "sim"
RESTART = 5.0  # seconds after which a service manager starts an agent again
LOST_AFTER = 15.0  # seconds; every commit of a simulated cluster says so
LEADER_TTL = 3.0  # seconds for which an answer of Consul makes a leader certain, if nothing else is said


@dataclass(frozen=True, slots=True)
class _Ear:
    """Tells the watcher of the world what one client says to Consul."""

    world: World
    who: str
    node: str  # of an agent

    def called(self) -> None:
        self.world.called(self.who, self.node)

    def wrote(self, text: bytes) -> None:
        self.world.watcher.wrote(text)

    def renewed(self, session: str, sent: float) -> None:
        held = self.world.store.sessions.get(session)
        if not self.node or held is None or held.ttl is None:
            return
        if held.service_checks:  # that of its name
            self.world.nodes[self.node].named_until = sent + held.ttl * TTL_MULTIPLIER
        else:  # that of its leases
            self.world.watcher.renewed(self.node, session, sent + held.ttl)

    def frees(self, keys: Collection[str]) -> None:
        self.world.watcher.frees(self.node, keys)

    def deletes(self, key: str) -> None:
        self.world.watcher.deletes(self.who, key)


@dataclass(slots=True)
class Controller:
    """One controller that runs in this world."""

    id: str  # its name and which of its lives this is
    loop: Loop
    consul: SimConsul
    net: SimNodes
    process: Process
    task: asyncio.Task[None]
    consul_cut: bool = False


class World:
    """Everything of one simulation. Same seed, same history."""

    def __init__(self, seed: int = 0, cluster: str = CLUSTER) -> None:
        running = asyncio.get_running_loop()
        assert isinstance(running, VirtualLoop)
        self.cluster = cluster
        self.clock = VirtualClock(running)
        self.random = random.Random(seed)
        self.store = Store(now=self.clock.now, new_id=lambda: f"{self.random.getrandbits(64):016x}")
        self.store.journaled = False
        self.source = SimSource()
        self.nodes: dict[str, Node] = {}
        self.controllers: dict[str, Controller] = {}
        self.missing: set[str] = set()  # packages (name@version) that nobody serves
        self.leader_ttl = LEADER_TTL
        self.lossy = 0.0  # how often the answer to an assignment is lost
        self.watcher: Watcher = LooksAway()
        self._lives = 0
        self._cut_off = False  # some controller reaches no node
        self.servers = Servers(self.store, self.clock, self.random, self)

    # ------------------------------------------------------------------------------------------- what is true

    @property
    def machines(self) -> Mapping[str, Machine]:
        return {name: node.machine for name, node in self.nodes.items()}

    def lost_lately(self, node: str, lag: float) -> bool:
        """Whether both witnesses missed a node for long enough, at some moment of the last `lag` seconds."""
        self._note_lost(node)
        return self.clock.now() - self.nodes[node].lost_at <= lag

    def _note_lost(self, name: str) -> None:
        """Remember when a node was lost last; called before anything about it changes."""
        node, now = self.nodes[name], self.clock.now()
        if node.shut.since is None and not self._cut_off:
            return
        ways = (node.shut, *(controller.net.shut for controller in self.controllers.values()))
        shut = min((way.since for way in ways if way.since is not None), default=None)
        if shut is None:
            return
        check = self.store.checks.get(keys.agent_check_id(self.cluster, name))
        critical = -1e9 if check is None else check.critical_since
        if critical is None and self._nameless(name):
            critical = node.named_until
        if critical is not None and now - max(shut, critical) >= LOST_AFTER - UNNOTICED:
            node.lost_at = now

    def _nameless(self, name: str) -> bool:
        """Whether Consul has ended the node's hold on its name."""
        entry = self.store.entries.get(keys.node(self.cluster, name))
        return entry is None or not entry.session

    def certain(self, controller: str) -> bool:
        """Whether Consul has answered this controller so recently that it may still lead."""
        found = next((each for each in self.controllers.values() if each.id == controller), None)
        return found is None or self.clock.now() < found.consul.heard + self.leader_ttl + 0.001

    def lock_of(self, replica: str) -> str:
        """The session that holds the lock of a replica."""
        entry = self.store.entries.get(keys.lease(self.cluster, replica))
        return entry.session if entry is not None else ""

    def eligible(self, replica: str, node: str) -> frozenset[str]:
        """The nodes that may have the lock after this one, as it wrote them down; none if another wrote last."""
        who, named = self._written(replica)
        return named if who == node else frozenset()

    def barred(self, replica: str, node: str) -> bool:
        """Whether the last holder of a lock wrote down who may have it next, and this node is not among them."""
        _, named = self._written(replica)
        return bool(named) and node not in named

    def _written(self, replica: str) -> tuple[str, frozenset[str]]:
        """Who wrote last on a lock, and the nodes that it named."""
        entry = self.store.entries.get(keys.lease(self.cluster, replica))
        record = json.loads(entry.value) if entry is not None and entry.value.startswith(b"{") else {}
        return str(record.get("node", "")), frozenset(record.get("eligible", {}))

    def git_in_trouble(self) -> bool:
        """Whether a look at Git brings an error or a rejected commit."""
        return bool(self.source.sourced.trouble or self.source.sourced.problems)

    def handed(self, who: str, edge: T) -> T:
        """What an agent or a controller (its name and which of its lives) gets to reach the world; a test may stand between."""
        return edge

    # ------------------------------------------------------------------------------------------- machines

    def add_machine(self, name: str) -> Node:
        """A machine that is up, without an agent yet."""
        node = self.nodes[name] = Node(Machine(name, self.clock, witness=self.watcher))
        node.shut.turn(True, self.clock.now())
        node.ledger.wrote = lambda assignment: self.watcher.accepted(SENDER.get(), name, assignment)
        return node

    def start_agent(self, name: str) -> None:
        """An agent starts on the machine, with what its ledger remembers."""
        node = self.nodes[name]
        node.starts += 1
        life = f"{name}-{node.starts}"
        node.process.resume()  # one that gave up may have been stopped since: nothing of it stays parked
        node.process = Process(life)
        if node.machine.paused:
            node.process.pause()  # as everything on it
        node.consul = self._consul(life)
        settings = NodeSettings(cluster=self.cluster, node=name, api=f"sim://{name}", address=name)
        node.agent = Agent(
            settings,
            AgentEdges(
                clock=self.clock,
                consul=self.handed(life, node.consul),
                keeper=self.handed(life, SimKeeper(node.machine)),
                ledger=self.handed(life, node.ledger),
                installer=self.handed(life, SimInstaller(node.machine, self.missing)),
                ports=SimPorts(),
                prober=SimProber(),
                uniform=self.random.uniform,
                agent=life,
                peers=self.handed(life, SimPeers(self.nodes, name, self.clock, self.watcher)),
                boot_id=f"{name}-boot-{node.machine.boot}",
            ),
        )
        node.task = node.process.spawn(node.agent.run(), f"agent {name}")
        node.task.add_done_callback(partial(self._agent_ended, name, life))
        self._ways()
        node.moved()

    def _agent_ended(self, name: str, life: str, task: asyncio.Task[None]) -> None:
        """An agent that may not have its name gives up, and its service manager starts it again."""
        if not task.cancelled() and isinstance(task.exception(), NameTaken):
            later(RESTART, self._start_again, name, life)
        else:
            self._ended(life, task)

    def _start_again(self, name: str, life: str) -> None:
        node = self.nodes[name]
        if node.process.name == life and node.agent is not None and node.machine.up:
            self.start_agent(name)

    def _ended(self, life: str, task: asyncio.Task[None]) -> None:
        """Agents and controllers live until they are killed."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.watcher.died(life, error)

    async def crash_agent(self, name: str) -> None:
        """The agent is gone from one moment to the next; its hosts go on."""
        node = self.nodes[name]
        if node.consul is not None:
            node.consul.cut = True  # nothing it does while it ends reaches Consul
        await node.process.kill()
        node.agent = node.task = None
        self.watcher.off(name)
        self._ways()
        node.moved()

    async def power_off(self, name: str) -> None:
        """The machine dies with everything on it."""
        self.nodes[name].machine.resume()
        self.nodes[name].machine.power_off()
        await self.crash_agent(name)

    def power_on(self, name: str) -> None:
        """The machine boots again and its agent starts."""
        self.nodes[name].machine.up = True
        self.start_agent(name)

    def pause_agent(self, name: str, paused: bool) -> None:
        """The agent is stopped in the middle of whatever it does, or goes on; on a machine that is paused nothing does."""
        node = self.nodes[name]
        if paused:
            node.process.pause()
        elif not node.machine.paused:
            node.process.resume()
        self._ways()

    def pause_machine(self, name: str, paused: bool) -> None:
        """Nothing at all runs on the machine, its keeper and its hosts included, or everything goes on."""
        machine = self.nodes[name].machine
        if paused:
            machine.pause()
            self.pause_agent(name, True)
            return
        if self.random.random() < 0.5:  # whoever runs first
            self.nodes[name].process.resume()
        machine.resume()
        self.pause_agent(name, False)

    def lose_ledger(self, name: str) -> None:
        """What the agent remembers makes no sense any more; it knows that when it starts next."""
        self.nodes[name].ledger.tear()
        self.watcher.forgot(name)

    # ------------------------------------------------------------------------------------------- ways

    def cut(self, name: str, *, consul: bool, noticed: bool = True) -> None:
        """No way to the controllers any more, and none to Consul if so asked. Unnoticed: connections stay open."""
        node = self.nodes[name]
        node.cut, node.unnoticed, node.consul_cut = True, not noticed, node.consul_cut or consul
        self.watcher.off(name)
        self.apply_cuts()
        if noticed:
            node.moved()

    def cut_consul(self, name: str, *, its_own: bool = False) -> None:
        """Only Consul cannot be reached from this node.

        With `its_own` there is a Consul agent on the machine, which is cut off from the servers: they go on showing its check.
        """
        self.nodes[name].consul_cut = True
        if its_own and (check := self.store.checks.get(keys.agent_check_id(CLUSTER, name))) is not None:
            check.expires = None
        self.apply_cuts()

    def deafen(self, name: str, deaf: bool) -> None:
        """What this node asks of Consul is done, and it hears no answer: the way back is cut."""
        client = self.nodes[name].consul
        if client is not None:
            client.deaf = deaf

    def heal(self, name: str) -> None:
        """All ways are open again, both ways and quick."""
        node = self.nodes[name]
        node.cut = node.near = node.unnoticed = node.consul_cut = node.mute = False
        node.slow = 0.0
        self.apply_cuts()
        node.moved()

    def mute(self, name: str) -> None:
        """What the node is told arrives, its answers do not."""
        self.nodes[name].mute = True
        self.watcher.off(name)
        self.apply_cuts()

    def slow(self, name: str, seconds: float) -> None:
        """Calls to the node take up to so long."""
        self.nodes[name].slow = seconds
        self.apply_cuts()

    def cut_controller(self, name: str, *, consul: bool, nodes: bool) -> None:
        """These ways of a controller are closed, the others open."""
        controller = self.controllers[name]
        controller.consul_cut, controller.net.cut = consul, nodes
        self.apply_cuts()
        for node in self.nodes.values():
            node.moved()

    def apply_cuts(self) -> None:
        for node in self.nodes.values():
            if node.consul is not None and node.agent is not None:
                node.consul.cut = self.servers.away or node.consul_cut
        for controller in self.controllers.values():
            controller.consul.cut = self.servers.away or controller.consul_cut
        self._ways()

    def _ways(self) -> None:
        """Remember since when who cannot be reached."""
        now = self.clock.now()
        for name, node in self.nodes.items():
            self._note_lost(name)
            node.shut.turn(not node.answers, now)
        for controller in self.controllers.values():
            controller.net.shut.turn(controller.net.cut, now)
        self._cut_off = any(controller.net.cut for controller in self.controllers.values())

    # ------------------------------------------------------------------------------------------- Consul

    def clients(self) -> list[SimConsul]:
        found = [node.consul for node in self.nodes.values() if node.consul is not None and node.agent is not None]
        return found + [controller.consul for controller in self.controllers.values()]

    def forgotten(self) -> None:
        """What Consul's servers say of who holds what may be wrong from now on."""
        now = self.clock.now()
        for node in self.nodes.values():
            node.named_until = min(node.named_until, now)

    def _consul(self, who: str) -> SimConsul:
        name = who.rpartition("-")[0]
        client = SimConsul(self.store, self.random, _Ear(self, who, name if name in self.nodes else ""))
        client.slow = self.servers.latency
        client.cut = self.servers.away or (name in self.nodes and self.nodes[name].consul_cut)
        return client

    def called(self, who: str, node: str) -> None:
        """Somebody, perhaps of a node, asks Consul something."""
        self.watcher.called(who)
        if node:
            self._note_lost(node)  # its beat may end that Consul misses it

    # ------------------------------------------------------------------------------------------- controllers

    def start_controller(self, name: str) -> Loop:
        """A controller runs; the first one leads."""
        self._lives += 1
        life = f"{name}-{self._lives}"
        consul = self._consul(life)
        net = SimNodes(
            self.nodes,
            life,
            clock=self.clock,
            random=self.random,
            listener=self.watcher,
            lossy=lambda: self.lossy,
        )
        said = self.handed(life, consul)
        edges = Edges(self.source, said, self.handed(life, net), self.clock, lambda digest: f"sim://packages/{digest}")
        leadership = Leadership(self.cluster, name, f"sim://{name}", consul=said, clock=self.clock, ttl=self.leader_ttl)
        loop = Loop(self.cluster, edges, leadership, Board(self.cluster, self.clock), Wakeups())
        process = Process(life)
        task = process.spawn(loop.run(), f"controller {name}")
        task.add_done_callback(partial(self._ended, life))
        self.controllers[name] = Controller(life, loop, consul, net, process, task)
        return loop

    async def crash_controller(self, name: str, *, its_consul: bool = False) -> None:
        """The controller is gone from one moment to the next.

        With `its_consul` its whole machine is, with the Consul agent there: Consul's servers go on showing its check.
        """
        controller = self.controllers.pop(name)
        controller.consul.cut = True
        if its_consul and (check := self.store.checks.get(keys.controller_check_id(CLUSTER, name))) is not None:
            check.expires = None
        await controller.process.kill()

    def pause_controller(self, name: str, paused: bool) -> None:
        """The controller is stopped in the middle of whatever it does, or goes on as if nothing had been."""
        process = self.controllers[name].process
        if paused:
            process.pause()
        else:
            process.resume()

    def leader(self) -> Loop | None:
        """The controller that leads, if one does."""
        return next((c.loop for c in self.controllers.values() if c.loop.board.term is not None), None)

    def push(self, desired: DesiredState) -> None:
        """A commit arrives."""
        self.source.push(Sourced(desired, desired.commit))

    async def until(self, true: Callable[[], bool], limit: float, every: float = 0.05) -> float:
        """Seconds until `true()` holds; TimeoutError after `limit` simulated seconds."""
        start = self.clock.now()
        while not true():
            if self.clock.now() - start > limit:
                raise TimeoutError
            await asyncio.sleep(every)
        return self.clock.now() - start

    async def close(self) -> None:
        """Everything ends."""
        for name in list(self.controllers):
            await self.crash_controller(name)
        for name in self.nodes:
            await self.crash_agent(name)
