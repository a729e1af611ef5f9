"""One agent: what a node does with what it is told. Every edge is a constructor argument, so it also runs on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping

import structlog

from agent.apply import Applier
from agent.by_hand import ByHand
from agent.carry import Carrier
from agent.edges import Edges, NodeSettings
from agent.errors import Missing, TdieError
from agent.expiry import Expiry
from agent.keeper.protocol import HostOrder, HostRow
from agent.keeper_care import stop_all, watch_keeper
from agent.leadership import Leadership, accepted
from agent.leases.leases import Leases
from agent.leases.peers import Ack, Ask
from agent.ledger import Remembered
from agent.ordered import Ordered
from agent.orders import subscriptions_of
from agent.probes import Probes
from agent.problems import NodeProblems
from agent.process_sync import ProcessSync
from agent.register import NameTaken, Registrar
from agent.report import ReportBook
from agent.steps import Collect, Fetch, Prepare, Step, case_of, is_by_hand, step_for
from agent.stock import Stock
from agent.table import HostTable
from agent.telling import Telling
from agent.wire import (
    USUAL_LEASES,
    Accepted,
    Assignment,
    Claim,
    Claimed,
    HealthCheck,
    NodeProblem,
    ReplicaState,
    ReplicaStatus,
    Report,
)

log = structlog.get_logger("agent")

_MOVING = (ReplicaState.STARTING, ReplicaState.STOPPING, ReplicaState.BACKOFF)
_NAME_PATIENCE = 10.0  # seconds an agent waits for Consul before it starts without having checked its name


class Agent:
    """An agent on its node: `run` until cancelled, then `close`. Its other methods are the node API."""

    def __init__(self, settings: NodeSettings, edges: Edges) -> None:
        self.settings = settings
        self._edges = edges
        self._loaded = asyncio.Event()
        self._remembered = Remembered()
        self._told_failures: frozenset[str] = frozenset()
        self._leaving = False
        self._adopted = False  # what its keeper has kept running has been found
        self._problem = NodeProblems(lambda: self._applier.look_again(()))
        self.book = ReportBook(
            cluster=settings.cluster,
            node=settings.node,
            agent=edges.agent,
            boot_id=edges.boot_id,
            version=settings.version,
            labels=settings.labels,
            capacity=settings.capacity,
            now=edges.clock.now,
            linger=settings.linger,
        )
        self.table = HostTable(edges.keeper, changed=self._rows_changed, all_read=self._all_read, problem=self._problem)
        self._leases = Leases(
            settings,
            edges,
            self.table,
            orders=lambda: self._carrier.orders,
            figures=lambda: self.assignment.policy.leases if self.assignment else USUAL_LEASES,
            epoch=lambda: self._leadership.epoch,
            changed=self._rows_changed,
            problem=self._problem,
        )
        self._carrier = Carrier(settings, edges, self.table, self._leases, self.packages_changed, self._problem)
        self._applier = Applier(
            look=self._look, carry=self._carrier.carry, looked=self._looked, clock=edges.clock, uniform=edges.uniform
        )
        self._stock = Stock(edges, self._carrier, self.table, self._applier, self._problem)
        self._leadership = Leadership(settings, edges, self._carrier, self.book, self._accept)
        self.processes = ProcessSync(self.table, self._problem, boot_id=edges.boot_id, every=settings.look_every)
        self.manual = ByHand(edges, self._carrier, self.table, settings.env_by_hand)
        self._probes = Probes(edges.prober, edges.clock, lambda replica: self._rows_changed((replica,)))
        self._registrar = Registrar(
            settings,
            consul=edges.consul,
            clock=edges.clock,
            ledger=edges.ledger,
            uniform=edges.uniform,
            agent=edges.agent,
            problem=self._problem,
        )
        self._telling = Telling(
            settings,
            edges.clock,
            carrier=self._carrier,
            table=self.table,
            applier=self._applier,
            probes=self._probes,
            leases=self._leases,
            book=self.book,
            registrar=self._registrar,
        )

    # ------------------------------------------------------------------------------------------- its life

    async def run(self) -> None:
        """Be this node's agent until cancelled; hosts stay. Raises NameTaken, before anything was touched."""
        await self._load()
        await self._first_registration()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._leadership.learn_epoch(), name="learn the latest epoch")
                tasks.create_task(self._registrar.stay(), name="stay registered")
                tasks.create_task(self._registrar.publish(), name="publish checks")
                tasks.create_task(self.table.follow(), name="follow keeper")
                tasks.create_task(self._leases.run(), name="leases")
                tasks.create_task(self._applier.run(), name="apply")
                if self._edges.processes is not None:
                    tasks.create_task(self.processes.run(self._edges.processes), name="look at processes")
                tasks.create_task(self._probes.run(), name="probes")
                tasks.create_task(
                    watch_keeper(self._edges.keeper, self._problem, self._limits_wanted),
                    name="watch the keeper's problems",
                )
                tasks.create_task(self._carrier.ports.run(), name="keep ports")
                tasks.create_task(self._stock.note_good(), name="note what runs well")
                tasks.create_task(self._stock.verify(self.settings.verify_every), name="verify packages")
                tasks.create_task(self._edges.bus.run(self._host_of, self._problem), name="bus")
        except* NameTaken as taken:
            raise taken.exceptions[0] from None

    async def close(self) -> None:
        """Ledger and bus are closed; hosts and their entries in Consul stay, the alias checks say that the agent is gone."""
        await self._edges.bus.close()
        await self._edges.ledger.close()

    async def stop_hosts(self, timeout: float = 60.0) -> tuple[str, ...]:
        """Every host of this node is stopped, and none is started any more; what is still up is returned.

        Best while `run` goes on: hosts may have a last message for the bus.
        """
        self._leaving = True
        return await stop_all(self._edges.keeper, timeout)

    async def leave(self, left: Collection[str] = ()) -> None:
        """Leases and entries in Consul are gone, if it answers; for after `run` has ended and all but `left` is stopped."""
        await self._leases.give_back(left)
        try:
            await self._registrar.leave()
        except TdieError as error:  # Consul's checks say so by themselves; what runs here must end all the same
            log.warning("entries in Consul stay until their checks lapse", error=str(error))

    def _limits_wanted(self) -> bool:
        orders = self.assignment.replicas if self.assignment else ()
        return any(order.spec.resources.cpu or order.spec.resources.memory for order in orders)

    @property
    def ready(self) -> bool:
        """It knows what it accepted and what runs here."""
        return self._loaded.is_set() and self.table.known

    @property
    def by_hand(self) -> Mapping[str, ReplicaStatus]:
        """What was started here by hand."""
        return self._telling.by_hand

    @property
    def assignment(self) -> Assignment | None:
        """The accepted assignment."""
        return self._carrier.assignment

    async def _load(self) -> None:
        held = await self._edges.ledger.load()
        self._remembered = held
        now = self._edges.clock.now()
        ordered = held.ordered.in_boot(self._edges.boot_id, now).taking(held.assignment, now)
        self._carrier.accept(held.assignment, ordered)
        self._carrier.ports.remember(held.ports)
        self._edges.bus.know_local(subscriptions_of(held.assignment))
        self._leadership.remember(held)
        self._leases.remember(held.leases, held.failsafe)
        self._problem("STATE_REBUILT", held.rebuilt)
        self.packages_changed()
        self._loaded.set()

    async def _first_registration(self) -> None:
        try:
            async with asyncio.timeout(_NAME_PATIENCE):
                await self._registrar.register(self._remembered.session)
        except NameTaken:
            raise
        except TimeoutError:
            self._problem("CONSUL_UNAVAILABLE", "Consul does not answer")
        except TdieError as error:
            self._problem("CONSUL_UNAVAILABLE", str(error))

    # ------------------------------------------------------------------------------------------- the node API

    async def claim(self, claim: Claim) -> Claimed:
        """From now on nobody with a lower epoch commands this node."""
        await self._loaded.wait()
        return await self._leadership.claim(claim)

    async def assign(self, offered: Assignment, expiry: Expiry | None = None) -> Accepted:
        """The assignment is in force and on disk; sending it again changes nothing. Refused once `expiry` is over."""
        await self._loaded.wait()
        return await self._leadership.assign(offered, expiry)

    async def failsafe_ack(self, ask: Ask) -> Ack:
        """This node promises the holder of a lease not to start that replica for a while."""
        await self._loaded.wait()
        return await self._leases.acknowledge(ask)

    async def report(self, index: int, wait: float, agent: str | None) -> Report:
        """What changed after `index`; waits up to `wait` seconds for something to tell."""
        await self._loaded.wait()
        return await self.book.wait(index, wait, agent)

    async def kill(self, replica: str) -> None:
        """The host is being stopped; if it is ordered it comes back, as after any drift."""
        if replica not in self.table.rows:
            raise Missing(f"no process '{replica}' on {self.settings.node}")
        await self._edges.keeper.stop(replica)

    async def kill_orphan(self, package: str, pid: int) -> str:
        """The recorded process that nobody looks after is ended; comes back with its replica."""
        return await self.processes.kill(self._edges.processes, package, pid)

    def problem(self, code: str, detail: str) -> None:
        """Something is wrong with this machine, or with an empty detail not any more."""
        self._problem(code, detail)

    def knows(self, replica: str) -> bool:
        """It is ordered here, or the keeper has a row of it; also while that is not known yet."""
        return not self.ready or replica in self._carrier.orders or replica in self.table.rows

    def log_path(self, replica: str) -> str:
        """Where the replica's log is, also after it stopped."""
        row = self.table.rows.get(replica)
        if row is None and replica not in self._carrier.orders:
            raise Missing(f"no process '{replica}' on {self.settings.node}")
        return (row.order.log if row else "") or self._carrier.log_path(replica)

    def _accept(self, offered: Assignment, ordered: Ordered) -> None:
        before = self._carrier.orders.keys() | self.table.rows.keys()
        self._carrier.accept(offered, ordered)
        self._edges.bus.know_local(subscriptions_of(offered))
        self._problem("STATE_REBUILT", "")
        self._applier.retry_now()
        self.book.say(accepted=accepted(offered), settled=False)
        self._rows_changed(before | self._carrier.orders.keys())
        self.packages_changed()
        log.info(
            "accepted", epoch=offered.epoch, generation=offered.generation, commit=offered.commit[:8],
            replicas=len(offered.replicas),
        )  # fmt: skip

    def _host_of(self, pid: int) -> HostOrder | None:
        """What the host with this process id runs, as the keeper says."""
        return next((row.order for row in self.table.rows.values() if row.pid == pid), None)

    # ------------------------------------------------------------------------------------------- what follows

    def _look(self, key: str) -> Step | None:
        """What to do for a replica or package now. Nothing before an assignment was accepted and the keeper was read, nor once
        everything is to stop."""
        if self.assignment is None or not self.table.known or self._leaving:
            return None
        if key.startswith("package "):
            return self._stock.steps.get(key)
        return step_for(case_of(key, self._carrier.local(), self._carrier.orders, self._carrier.heirs))[0]

    def _rows_changed(self, replicas: Iterable[str]) -> None:
        """These replicas may have changed in any way: tell the report, Consul and the probes, and look what to do."""
        orders, rows = self._carrier.orders, self.table.rows
        names = set(replicas)
        for name in names:
            order = orders.get(name)
            check = order.policy.health if order else HealthCheck()
            self._probes.consider(rows.get(name), name, check)
            self._stock.seen(rows.get(name))
            self.manual.seen(rows.get(name))
            self._telling.tell(name)
        self.processes.changed()
        self._leases.look(names)
        if any(is_by_hand(name) and name not in rows for name in names):
            self.packages_changed()  # what only these needed may go now
        heirs = {self._carrier.heirs[name] for name in names if name in self._carrier.heirs}
        renamed = {order.renamed_from for name in names if (order := orders.get(name)) and order.renamed_from}
        self._applier.look_again(names | heirs | renamed)

    def _all_read(self) -> None:
        """The keeper's rows are known (again): everything is looked at once."""
        if not self._adopted:
            self._adopted = True
            _say_adopted(self._carrier.orders, self.table.rows)
        for row in self.table.rows.values():
            self._carrier.ports.seen(row.replica, row.order.port)
        names = self.table.rows.keys() | self._carrier.orders.keys() | self.book.rows.keys() | self.by_hand.keys()
        self._rows_changed(names)
        self.packages_changed()
        self._registrar.complete()

    def packages_changed(self) -> None:
        """Packages came, went or are ordered; also when somebody uploaded or deleted them here."""
        self._stock.changed()

    def _looked(self) -> None:
        """After each round: what failed, what is fetched, and whether anything is left to do."""
        failures = self._applier.failures
        said = [
            NodeProblem(code=f.error.code, detail=f"{_subject(f.step)}: {f.error.detail}") for f in failures.values()
        ]
        for key in failures.keys() | self._told_failures:
            if not key.startswith("package "):
                self._telling.tell(key)
        self._told_failures = frozenset(failures)
        moving = any(row.state in _MOVING and not is_by_hand(row.replica) for row in self.table.rows.values())
        self.book.say(
            settled=self.assignment is not None and self.table.known and self._applier.idle and not moving,
            packages=self._stock.news(),
            problems=sorted([*self._problem.all, *said], key=lambda p: (p.code, p.detail)),
        )


def _say_adopted(orders: Collection[str], rows: Mapping[str, HostRow]) -> None:
    """How many of the ordered hosts go on that ran before this agent did (FAULTS row 32)."""
    running = sum(name in rows and rows[name].pid is not None for name in orders)
    if running:
        log.info("hosts that ran before this agent go on", code="ADOPTED", hosts=f"{running}/{len(orders)}")


def _subject(step: Step) -> str:
    match step:
        case Fetch():
            return str(step.package.package)
        case Prepare():
            return "+".join(digest[:12] for digest in step.environment.split("+"))
        case Collect():
            return step.digest[:12]
    return step.replica
