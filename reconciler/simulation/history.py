"""One seeded history: a fleet, half an hour of faults, and rest. Same seed, same history to the last event."""

from __future__ import annotations

import asyncio
import hashlib
import random
import string
from dataclasses import dataclass, replace

from agent.errors import TdieError
from agent.wire import PackageRef, ReplicaSpec
from reconciler import answers
from reconciler.model.desired import (
    ClusterSpec,
    DesiredState,
    FailoverPolicy,
    InstanceSpec,
    NodeSpec,
    Placement,
    Share,
    SyncPolicy,
    UpdatePolicy,
)
from reconciler.simulation import virtual
from reconciler.simulation.faults import FAULTS
from reconciler.simulation.hosts import Machine
from reconciler.simulation.observer import Observer, Violation
from reconciler.simulation.world import CLUSTER, World

LENGTH = 1800.0  # simulated seconds with faults
REST = 900.0  # … after the last one, within which everything must be as wanted
CONTROLLERS = ("one", "two", "three")
NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")


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
        self.observer = Observer(self.world.clock, lambda: [node.machine for node in self.world.nodes.values()])
        self.world.witness = self.observer
        self.world.accepted = self.observer.accepted
        self.observer.drained = self._drained
        self._instances: dict[str, InstanceSpec] = {}
        self._commits = 0
        self._versions = 0
        self._wishes: set[str] = set()
        self.story: list[str] = []

    # ------------------------------------------------------------------------------------------- what faults use

    def some_node(self) -> str:
        return self.random.choice(sorted(self.world.nodes))

    def is_up(self, node: str) -> bool:
        return self.world.nodes[node].machine.up

    def has_agent(self, node: str) -> bool:
        return self.world.nodes[node].agent is not None

    def some_controller(self) -> str:
        return self.random.choice(CONTROLLERS)

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

    def push(self, *, broken: bool = False, missing: bool = False) -> str:
        """A new commit; returns the version (name@version) it brings, if it brings one."""
        version = ""
        action = self.random.choice(["version", "version", "scale", "settings", "add", "drop", "policy"])
        if broken or missing:
            action = "version"
        name = self.random.choice(sorted(self._instances) or list(NAMES))
        spec = self._instances.get(name)
        if spec is None or action == "add":
            name = self.random.choice(NAMES)
            spec = self._instances.get(name) or self._new(name)
        if action == "version":
            spec = self._with_version(spec)
            version = str(spec.spec.package)
        elif action == "scale" and spec.replicas is not None:
            spec = replace(spec, replicas=self.random.randint(1, 6))
        elif action == "settings":
            settled = spec.spec.model_copy(update={"settings": {"x": self.random.randint(0, 9)}})
            spec = replace(spec, spec=settled, spec_hash=settled.hash())
        elif action == "policy":
            spec = replace(spec, update=self._update())
        self._instances[name] = spec
        if action == "drop" and len(self._instances) > 2:
            del self._instances[name]
        if broken:
            for node in self.world.nodes.values():
                node.machine.broken.add(version)
        if missing:
            self.world.missing.add(version)
        self._publish()
        return version

    def mend(self, version: str) -> None:
        """The version works from now on, wherever it is started."""
        for node in self.world.nodes.values():
            node.machine.broken.discard(version)

    async def wish(self, name: str, *, drain: bool) -> bool:
        """A person asks the leader to drain a node or to take it back; False when nobody leads."""
        leader = self.world.leader()
        if leader is None or leader.board.term is None:
            return False
        session = leader.board.term.session
        try:
            if drain:
                await leader.node_wishes.cordon(name, session, who="ann", why="", drain=True, within=120.0)
                self._wishes.add(name)
            else:
                await leader.node_wishes.uncordon(name, session)
        except TdieError:
            return False
        return True

    def _drained(self, node: str) -> bool:
        return node in self._wishes

    # ------------------------------------------------------------------------------------------- commits

    def _new(self, name: str) -> InstanceSpec:
        package = PackageRef(name=name, version="1.0.0", digest="")
        spec = ReplicaSpec(package=package)
        count = self.random.randint(1, 5)
        shape = {"per_node": 1} if self.random.random() < 0.25 else {"replicas": count}
        placement = Placement(
            spread=self.random.choice(["", "zone"]),
            strategy=self.random.choice(["least-loaded", "least-loaded", "pack", "evenness"]),
        )
        made = InstanceSpec(name, spec, spec.hash(), placement=placement, update=self._update(), **shape)  # type: ignore[arg-type]  # one of two ints
        return self._with_version(made)

    def _update(self) -> UpdatePolicy:
        return UpdatePolicy(
            max_parallel=self.random.choice([Share(1), Share(1), Share(2), Share(50, percent=True)]),
            min_healthy_time=self.random.choice([0.0, 1.0, 10.0]),
            healthy_deadline=30.0,
        )

    def _with_version(self, instance: InstanceSpec) -> InstanceSpec:
        self._versions += 1
        version = f"1.{self._versions}.0"
        digest = hashlib.sha256(f"{instance.name}@{version}".encode()).hexdigest()
        package = PackageRef(name=instance.name, version=version, digest=digest)
        spec = instance.spec.model_copy(update={"package": package})
        return replace(instance, spec=spec, spec_hash=spec.hash())

    def _publish(self) -> None:
        self._commits += 1
        nodes = {
            name: NodeSpec(name, {"zone": "xy"[number % 2]}) for number, name in enumerate(sorted(self.world.nodes))
        }
        cluster = ClusterSpec(
            CLUSTER,
            nodes,
            sync=SyncPolicy(max_prune=Share(100, percent=True)),
            failover=FailoverPolicy(lost_after=15.0),
        )
        instances = {name: self._instances[name] for name in sorted(self._instances)}
        desired = DesiredState(f"{self._commits:040x}", cluster, instances, subject=f"commit {self._commits}")
        self.observer.pushed(desired)
        self.world.push(desired)

    # ------------------------------------------------------------------------------------------- the history

    async def live(self) -> None:
        """Start, faults, rest."""
        world = self.world
        for name in string.ascii_lowercase[: self.random.randint(5, 9)]:
            world.add_machine(name)
            world.start_agent(name)
        for name in CONTROLLERS:
            world.start_controller(name)
        for name in self.random.sample(NAMES, self.random.randint(3, 5)):
            self._instances[name] = self._new(name)
        self._publish()
        await asyncio.sleep(10.0)
        async with asyncio.TaskGroup() as tasks:
            moments = sorted(self.random.uniform(0.0, LENGTH) for _ in range(self.random.randint(20, 50)))
            now = 0.0
            for number, moment in enumerate(moments):
                await asyncio.sleep(moment - now)
                now = moment
                fault = self.random.choices([f for _, f in FAULTS], [weight for weight, _ in FAULTS])[0]
                said = f"{world.clock.now():9.3f}  {fault.__name__.replace('_', ' ')}"
                self.story.append(said)
                self.observer.note(said)
                tasks.create_task(fault(self), name=f"fault {number}")
        await self._rest()

    async def _rest(self) -> None:
        """Everything is whole again; what Git asks for must run before long, and one controller must lead."""
        world = self.world
        for name, node in world.nodes.items():
            world.heal(name)
            node.machine.broken.clear()
            if not node.machine.up:
                world.power_on(name)
            elif node.agent is None:
                world.start_agent(name)
        for name in CONTROLLERS:
            if name not in world.controllers:
                world.start_controller(name)
            world.cut_controller(name, consul=False, nodes=False)
        world.consul_away(False)
        world.missing.clear()
        for name in sorted(self._wishes):
            for _ in range(120):
                if await self.wish(name, drain=False):
                    break
                await asyncio.sleep(1.0)  # nobody leads yet
        self._instances = {name: self._with_version(spec) for name, spec in self._instances.items()}
        self._publish()
        try:
            await world.until(self._all_is_well, REST)
            await asyncio.sleep(5.0)  # what was asked a moment ago has been noticed by now
            await world.until(self._all_is_well, REST)
        except TimeoutError:
            self.observer.broken("everything comes to rest", self._why())
            return
        leading = [name for name, controller in world.controllers.items() if controller.loop.board.term is not None]
        if len(leading) != 1:
            self.observer.broken("one controller leads", f"{leading} lead")
        self.observer.at_rest(self.observer.commits[f"{self._commits:040x}"])

    def _all_is_well(self) -> bool:
        leader = self.world.leader()
        if leader is None or leader.board.desired is None:
            return False
        return leader.board.desired.commit == f"{self._commits:040x}" and answers.converged(leader.board)

    def _why(self) -> str:
        leader = self.world.leader()
        if leader is None or leader.board.plan is None:
            return "nobody leads"
        plan = leader.board.plan
        holds = {f"{hold.replica} {hold.reason}: {hold.detail}" for hold in plan.holds}
        return f"{len(plan.changes)} change(s) left; {'; '.join(sorted(holds)[:5]) or 'no holds'}"


def run(seed: int) -> Outcome:
    """The history of this seed."""

    async def main() -> Outcome:
        history = History(seed)
        try:
            await history.live()
        finally:
            await history.world.close()
        observer = history.observer
        return Outcome(
            seed,
            tuple(observer.violations),
            len(history.story),
            float(history.world.clock.now()),
            observer.digest,
            tuple(history.story),
        )

    return virtual.run(main())
