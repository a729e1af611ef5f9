"""The ways between controllers and agents: calls take time, arrive late or not at all, and answers get lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from agent.client import ANSWER
from agent.clock import Clock, Monotonic
from agent.errors import Late, Waiting
from agent.expiry import Expiry
from agent.leases.peers import Ack, Ask
from agent.node import Agent
from agent.wire import Accepted, Assignment, Claim, Claimed, Report
from reconciler.simulation.consul import SimConsul
from reconciler.simulation.disk import SimLedger
from reconciler.simulation.machine import Machine
from reconciler.simulation.virtual import Process, outside

T = TypeVar("T")

LATENCY = 0.002  # seconds of one call between a controller and an agent
UNNOTICED = 6.0  # seconds for which nobody may notice that a way is open: calls and beats that failed are tried again
SENDER: ContextVar[str] = ContextVar("who told the agent what it does now", default="")


class Listener(Protocol):
    """Hears what controllers say to agents, at the moment it has an effect."""

    def sent(self, controller: str, node: str, assignment: Assignment) -> None:
        """A controller sends this now."""

    def promised(self, node: str, ask: Ask, sent: float) -> None:
        """The node answers that it will not start a replica for a while; asked at `sent`."""

    def claimed(self, controller: str, node: str, claim: Claim) -> None:
        """The agent of this node has taken a claim over."""


@dataclass(slots=True)
class Shut:
    """Since when nobody gets anything through a way; one that opens for too short a time to be noticed counts as shut."""

    since: Monotonic | None = None  # None: it is open
    _before: Monotonic | None = None  # since when it was shut until it opened last …
    _opened: Monotonic = Monotonic(0.0)  # … and when that was

    def turn(self, shut: bool, now: Monotonic) -> None:
        """It is shut or open from now on, or still."""
        if shut and self.since is None:
            noticed = self._before is None or now - self._opened >= UNNOTICED
            self.since = now if noticed else self._before
        elif not shut and self.since is not None:
            self._before, self._opened, self.since = self.since, now, None


@dataclass(slots=True)
class Node:
    """One machine with what it remembers, and its agent while that runs."""

    machine: Machine
    ledger: SimLedger = field(default_factory=SimLedger)
    consul: SimConsul | None = None
    agent: Agent | None = None
    process: Process = field(default_factory=lambda: Process("agent"))
    task: asyncio.Task[None] | None = None
    starts: int = 0
    cut: bool = False  # no way between it and the controllers
    near: bool = False  # … but other agents and it reach each other
    unnoticed: bool = False  # … and nobody is told: packets are dropped, connections stay open
    consul_cut: bool = False  # no way between it and Consul
    slow: float = 0.0  # seconds that a call to it takes at most
    mute: bool = False  # what it is told arrives, its answers do not
    shut: Shut = field(default_factory=Shut)  # the way of its answers to controllers
    named_until: float = -1e9  # when its hold on its name in Consul ends if it is not renewed
    lost_at: Monotonic = Monotonic(-1e9)  # when both witnesses last missed it for long enough
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # set whenever waiting callers must look again

    def moved(self) -> None:
        """Ways opened or closed, or the agent is another one."""
        self.gone.set()
        self.gone = asyncio.Event()

    @property
    def apart(self) -> bool:
        """Whether no other agent reaches it."""
        return self.cut and not self.near

    @property
    def answers(self) -> bool:
        """Whether who calls gets an answer in time."""
        shut = self.cut or self.mute or self.slow >= ANSWER or self.agent is None or not self.machine.up
        return not shut and not self.process.paused


class SimPeers:
    """The network between one agent and the others."""

    def __init__(self, nodes: dict[str, Node], name: str, clock: Clock, listener: Listener) -> None:
        self._nodes, self._name, self._clock, self._listener = nodes, name, clock, listener

    async def failsafe_ack(self, api: str, ask: Ask) -> Ack:
        """What the other agent answers. It is not heard when either is cut off, nor in time when the other is slow."""
        sent = self._clock.now()
        me, node = self._nodes[self._name], self._nodes.get(_name(api))
        await asyncio.sleep(LATENCY + (node.slow if node is not None else 0.0))
        if node is None or me.apart or node.apart or node.agent is None or not node.machine.up:
            raise Waiting(f"{ask.node} cannot be reached")
        answer = node.process.spawn(self._answer(node.agent, ask, sent), "promise")
        answer.add_done_callback(_looked_at)
        await asyncio.wait({answer})
        if answer.cancelled() or node.apart or node.mute or me.apart:
            raise Waiting(f"{ask.node} does not answer")
        return answer.result()

    async def _answer(self, agent: Agent, ask: Ask, sent: float) -> Ack:
        ack = await agent.failsafe_ack(ask)
        self._listener.promised(ack.node, ask, sent)
        return ack


class SimNodes:
    """The network between one controller and the agents."""

    def __init__(
        self,
        nodes: dict[str, Node],
        controller: str,
        *,
        clock: Clock,
        random: random.Random,
        listener: Listener,
        lossy: Callable[[], float],
    ) -> None:
        """`lossy` says how often an answer is lost, from 0 to 1."""
        self._nodes = nodes
        self._controller = controller
        self._clock = clock
        self._random = random
        self._listener = listener
        self._lossy = lossy
        self.cut = False  # this controller reaches nobody
        self.shut = Shut()

    async def claim(self, api: str, claim: Claim) -> Claimed:
        async def work(agent: Agent) -> Claimed:
            claimed = await agent.claim(claim)
            self._listener.claimed(self._controller, _name(api), claim)
            return claimed

        return await self._call(api, work, 0.0)

    async def assign(self, api: str, assignment: Assignment, expiry: Expiry) -> Accepted:
        async def work(agent: Agent) -> Accepted:
            SENDER.set(self._controller)
            return await agent.assign(assignment, expiry)

        self._listener.sent(self._controller, _name(api), assignment)
        return await self._call(api, work, self._lossy())

    async def _call(self, api: str, work: Callable[[Agent], Awaitable[T]], lossy: float) -> T:
        """What the agent answers, if that comes in time. What was sent arrives all the same, if need be late."""
        node = self._nodes[_name(api)]
        exchange = outside(self._exchange(node, work, lossy), f"call to {_name(api)}")
        exchange.add_done_callback(_looked_at)
        await asyncio.wait({exchange}, timeout=ANSWER)
        if not exchange.done():
            raise Late(f"{api} does not answer in time")
        return exchange.result()

    async def _exchange(self, node: Node, work: Callable[[Agent], Awaitable[T]], lossy: float) -> T:
        await asyncio.sleep(self._random.uniform(0.0, node.slow) if node.slow else LATENCY)
        agent = self._reach(node)
        answer = node.process.spawn(_answer(work, agent), "answer")
        await asyncio.wait({answer})
        if answer.cancelled():
            raise Waiting(f"{node.machine.name} went away")
        done = answer.result()
        if node.mute or node.cut:
            await asyncio.sleep(ANSWER)
        if node.mute or node.cut or (lossy and self._random.random() < lossy):
            raise Waiting(f"{node.machine.name} does not answer")  # it did what it was told, and nobody hears of it
        return done

    async def report(self, api: str, index: int, wait: float, agent: str) -> Report:
        node = self._nodes[_name(api)]
        await asyncio.sleep(LATENCY)
        called = self._reach(node)
        answer = node.process.spawn(called.report(index, wait, agent), "report")
        try:
            async with asyncio.timeout(wait + ANSWER):
                while not answer.done() or node.unnoticed or node.mute:
                    gone = asyncio.ensure_future(node.gone.wait())
                    await asyncio.wait([gone] if answer.done() else [answer, gone], return_when=asyncio.FIRST_COMPLETED)
                    gone.cancel()
                    if not node.unnoticed and self._reach(node) is not called:
                        raise Waiting(f"{api} went away")
            if answer.cancelled():
                raise Waiting(f"{api} went away")
            await asyncio.sleep(LATENCY)
            if self._reach(node) is not called:
                raise Waiting(f"{api} went away")
            return answer.result()
        except TimeoutError as error:
            raise Late(f"{api} does not answer in time") from error
        finally:
            answer.cancel()

    async def logs(self, api: str, replica: str, lines: int) -> str:
        self._reach(self._nodes[_name(api)])
        return ""

    async def follow_logs(self, api: str, replica: str, lines: int) -> AsyncIterator[bytes]:
        yield (await self.logs(api, replica, lines)).encode()

    async def kill(self, api: str, package: str, replica: str) -> None:
        node = self._nodes[_name(api)]
        self._reach(node)
        node.machine.kill_host(replica)

    async def close(self) -> None:
        return None

    def _reach(self, node: Node) -> Agent:
        if self.cut or node.cut or node.agent is None or not node.machine.up:
            raise Waiting(f"{node.machine.name} does not answer")
        return node.agent


async def _answer(work: Callable[[Agent], Awaitable[T]], agent: Agent) -> T:
    return await work(agent)


def _looked_at(exchange: asyncio.Task[T]) -> None:
    if not exchange.cancelled():
        exchange.exception()  # who sent it may have stopped waiting


def _name(api: str) -> str:
    return api.removeprefix("sim://")
