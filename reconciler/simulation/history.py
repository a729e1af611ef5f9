"""One seeded history: a fleet, half an hour of faults, and rest. Same seed, same history to the last event."""

from __future__ import annotations

import asyncio
import random
import string
from contextlib import suppress
from dataclasses import dataclass

from agent import keys
from agent.errors import TdieError
from reconciler import answers
from reconciler.execution.leadership import Term
from reconciler.loop import Loop
from reconciler.model.desired import DesiredState
from reconciler.simulation import virtual
from reconciler.simulation.commits import Repository
from reconciler.simulation.faults import FAILSAFE_FAULTS, FAULTS
from reconciler.simulation.machine import Machine
from reconciler.simulation.observer import Observer
from reconciler.simulation.patrol import Patrol
from reconciler.simulation.rest import at_rest
from reconciler.simulation.truth import Violation
from reconciler.simulation.world import CLUSTER, World

LENGTH = 1800.0  # simulated seconds with faults
ELECTED = 100.0  # … after the last one, within which exactly one controller leads (2T+D of FAULTS §0)
REST = 900.0  # … and within which everything must be as wanted, after a commit that changes all of it
CONTROLLERS = ("one", "two", "three")
NOTICED = 45.0  # … by when everybody has noticed, and an agent that could not reach Consul has tried again
LOOK = 0.5  # seconds between looks whether a promise was broken or all is well
SECRET = "s3cret-canary"
FAILSAFE = 1_000_000  # histories from this seed on have failsafe leases, and outages for them


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a history ended."""

    seed: int
    violations: tuple[Violation, ...]
    faults: int
    simulated: float  # seconds
    digest: str  # over every event
    story: tuple[str, ...]  # the faults, with their times


class History:
    """What faults may do to the world, and what they need to know of it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World(seed)
        self.world.servers.latency = self.random.choice(
            [0.0, 0.0, 0.0, 0.03]
        )  # so that things happen between any two calls
        self.world.leader_ttl = self.random.choice([3.0, 9.0, 9.0])
        self.observer = Observer(self.world.clock, self.world, CLUSTER, SECRET)
        self.truth = self.observer.truth
        self.world.watcher = self.observer
        self.faults = FAULTS if seed < FAILSAFE else FAULTS + FAILSAFE_FAULTS
        self.git = Repository(self.random, CLUSTER, SECRET, self._pushed, failsafe=seed >= FAILSAFE)
        self.story: list[str] = []

    def _pushed(self, desired: DesiredState) -> None:
        self.truth.pushed(desired)
        self.world.push(desired)

    # ------------------------------------------------------------------------------------------- what faults use

    async def sometime(self, low: float, high: float) -> None:
        """Returns after so many seconds."""
        await asyncio.sleep(self.random.uniform(low, high))

    def some_node(self) -> str:
        return self.random.choice(sorted(self.world.nodes))

    def is_up(self, node: str) -> bool:
        return self.world.nodes[node].machine.up

    def has_agent(self, node: str) -> bool:
        return self.world.nodes[node].agent is not None

    def some_controller(self) -> str | None:
        """One that runs; the leader more often than others, as more depends on it."""
        running = sorted(self.world.controllers)
        leading = [name for name in running if self.world.controllers[name].loop.board.term is not None]
        if leading and self.random.random() < 0.6:
            return self.random.choice(leading)
        return self.random.choice(running) if running else None

    def some_host(self) -> tuple[Machine, str] | None:
        """A process that runs somewhere."""
        found = [
            (node.machine, replica)
            for _, node in sorted(self.world.nodes.items())
            if node.machine.up
            for replica, row in sorted(node.machine.rows.items())
            if row.state == "Started"
        ]
        return self.random.choice(found) if found else None

    def some_lease(self) -> tuple[str, str] | None:
        """The key of a lease that is held, and the session that holds it."""
        prefix = keys.leases(CLUSTER)
        held = sorted((k, e.session) for k, e in self.world.store.entries.items() if k.startswith(prefix) and e.session)
        return self.random.choice(held) if held else None

    def add_node(self) -> str:
        """A new machine with an agent; empty when there are enough."""
        if len(self.world.nodes) >= 11:
            return ""
        name = string.ascii_lowercase[len(self.world.nodes)]
        self.world.add_machine(name)
        self.world.start_agent(name)
        return name

    def leading(self) -> tuple[Loop, Term] | None:
        """The leader and its term, if somebody leads."""
        leader = self.world.leader()
        return None if leader is None or leader.board.term is None else (leader, leader.board.term)

    async def wish(self, name: str, *, drain: bool) -> bool:
        """A person asks the leader to drain a node or to take it back; False when nobody leads."""
        if (found := self.leading()) is None:
            return False
        leader, term = found
        try:
            if drain:
                self.truth.asked.add(name)
                await leader.node_wishes.cordon(name, term.session, who="ann", why="", drain=True, within=120.0)
            else:
                await leader.node_wishes.uncordon(name, term.session)
        except TdieError:
            return False
        return True

    async def confirm(self) -> None:
        """A person lets go what left Git, as the plan shows it."""
        if (found := self.leading()) is None or found[0].board.plan is None:
            return
        leader, term = found
        plan = leader.board.plan
        if plan is not None and plan.prune_digest:
            self.truth.confirmed.add(plan.commit)  # also when no answer says that it was written
            with suppress(TdieError), leader.changing_record() as record:
                await record.confirm_prune(plan.prune_digest, "ann", term.session)

    # ------------------------------------------------------------------------------------------- the history

    async def live(self) -> None:
        """Start, faults, rest."""
        world = self.world
        for name in string.ascii_lowercase[: self.random.randint(5, 9)]:
            world.add_machine(name)
            world.start_agent(name)
        for name in CONTROLLERS:
            world.start_controller(name)
        self.git.begin(world.nodes)
        await asyncio.sleep(10.0)
        async with asyncio.TaskGroup() as tasks:
            moments = sorted(self.random.uniform(0.0, LENGTH) for _ in range(self.random.randint(20, 50)))
            now = 0.0
            for number, moment in enumerate(moments):
                await asyncio.sleep(moment - now)
                now = moment
                fault = self.random.choices([f for _, f in self.faults], [weight for weight, _ in self.faults])[0]
                said = f"{world.clock.now():9.3f}  {fault.__name__.replace('_', ' ')}"
                self.story.append(said)
                self.truth.note(said)
                tasks.create_task(fault(self), name=f"fault {number}")
        await self._rest()

    async def _rest(self) -> None:
        """Everything is whole again; what Git asks for must run before long, and one controller must lead."""
        world = self.world
        for name, node in world.nodes.items():
            world.heal(name)
            world.deafen(name, False)
            node.machine.broken.clear()
            for replica in sorted(node.machine.stuck):
                node.machine.free(replica)
            if not node.machine.up:
                world.power_on(name)
            elif node.agent is None:
                world.start_agent(name)
        for name in CONTROLLERS:
            if name not in world.controllers:
                world.start_controller(name)
            world.cut_controller(name, consul=False, nodes=False)
        world.servers.vanish(False)
        world.missing.clear()
        try:
            await world.until(self._one_leads, ELECTED, LOOK)
        except TimeoutError:
            self.truth.broken("one controller leads", f"{self._leaders()} lead")
        for name in sorted(self.truth.asked):
            for _ in range(120):
                if await self.wish(name, drain=False):
                    break
                await asyncio.sleep(1.0)  # nobody leads yet
        self.git.renew()
        try:
            await world.until(self._all_is_well, REST, LOOK)
            await asyncio.sleep(NOTICED)
            await world.until(self._all_is_well, REST, LOOK)
        except TimeoutError:
            self.truth.broken("everything comes to rest", self._why())
            return
        if not self._one_leads():
            self.truth.broken("one controller leads", f"{self._leaders()} lead")
        at_rest(self.truth, self.truth.commits[self.git.tip], world.store)

    def _leaders(self) -> list[str]:
        return [name for name, found in self.world.controllers.items() if found.loop.board.term is not None]

    def _one_leads(self) -> bool:
        return len(self._leaders()) == 1

    def _all_is_well(self) -> bool:
        leader = self.world.leader()
        if leader is None or leader.board.desired is None:
            return False
        return leader.board.desired.commit == self.git.tip and answers.converged(leader.board)

    def _why(self) -> str:
        leader = self.world.leader()
        if leader is None or leader.board.plan is None:
            return "nobody leads"
        plan = leader.board.plan
        holds = {f"{hold.replica} {hold.reason}: {hold.detail}" for hold in plan.holds}
        shown = answers.status(leader.board, "", self.world.clock.now())
        off = [f"{row['name']} {row['wanted']}/{row['healthy']}" for row in shown["instances"] if not _well(row)]
        said = [f"{len(plan.changes)} change(s) left", *sorted(holds)[:5], *off, leader.board.error]
        return "; ".join(filter(None, said))


def _well(row: dict[str, object]) -> bool:
    return row["wanted"] == row["running"] == row["current"] == row["healthy"]


def run(seed: int, *, until: str = "") -> Outcome:
    """The history of this seed; it ends early once the promise `until` is broken."""

    async def main() -> Outcome:
        history = History(seed)
        living = asyncio.create_task(history.live(), name="history")
        patrol = asyncio.create_task(Patrol(history.truth, history.world).walk(), name="patrol")
        try:
            while not living.done():
                await asyncio.wait({living}, timeout=LOOK if until else None)
                if until in {violation.promise for violation in history.truth.violations}:
                    break
            if living.done():
                living.result()
        finally:
            living.cancel()
            patrol.cancel()
            await asyncio.gather(living, patrol, return_exceptions=True)
            story, truth = tuple(history.story), history.truth
            seen, digest, now = tuple(truth.violations), truth.digest, float(history.world.clock.now())
            await history.world.close()
        return Outcome(seed, seen, len(story), now, digest, story)

    return virtual.run(main())
