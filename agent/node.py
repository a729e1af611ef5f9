"""One agent: what a node does with what it is told. Every edge is a constructor argument, so it also runs on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import partial
from typing import Literal

import structlog

from agent import keys
from agent.apply import Applier
from agent.carry import Carrier, HostTable
from agent.checks import entry
from agent.edges import Edges, NodeSettings
from agent.errors import Invalid, Missing, Refused, TdieError, Waiting
from agent.keeper.protocol import Code, HostOrder, HostRow
from agent.keeper.sandbox import DEGRADED as SANDBOX_DEGRADED
from agent.ledger import Remembered
from agent.orders import subscriptions_of
from agent.probes import Probes
from agent.refusals import StaleLeader
from agent.register import NameTaken, Registrar
from agent.report import ReportBook
from agent.status import status_row
from agent.steps import (
    Collect,
    Fetch,
    Local,
    Prepare,
    Step,
    case_of,
    fetches,
    in_use,
    is_by_hand,
    is_ready,
    preparations,
    step_for,
)
from agent.wire import (
    Accepted,
    Assignment,
    Claim,
    Claimed,
    HealthCheck,
    NodeProblem,
    PackageStatus,
    ReplicaState,
    ReplicaStatus,
    Report,
    content_digest,
    digest_of,
)

log = structlog.get_logger("agent")

KEEPER_LOOK = 15.0  # seconds between looks at what the keeper says of itself
_MOVING = (ReplicaState.STARTING, ReplicaState.STOPPING, ReplicaState.BACKOFF)
_EPOCH_PAUSE = 1.0  # seconds between tries to learn the latest epoch
_NAME_PATIENCE = 10.0  # seconds an agent waits for Consul before it starts without having checked its name


class Agent:
    """An agent on its node: `run` until cancelled, then `close`. Its other methods are the node API."""

    def __init__(self, settings: NodeSettings, edges: Edges) -> None:
        self.settings = settings
        self._edges = edges
        self._loaded = asyncio.Event()
        self._commands = asyncio.Lock()  # claims and assignments one after the other
        self._remembered = Remembered()
        self._epoch = 0
        self._epoch_known = (
            False  # not before the ledger, or without it Consul, has said which leadership is the latest
        )
        self._problems: dict[str, NodeProblem] = {}
        self._package_steps: dict[str, Step] = {}
        self._told_failures: frozenset[str] = frozenset()
        self._packages_stale = True  # while replicas are busy, packages are only told anew when they changed
        self.by_hand: dict[str, ReplicaStatus] = {}
        self._corrupt: dict[str, str] = {}  # digest → name, damaged on disk and not healed yet
        self._proven: set[str] = set()
        self._proof = asyncio.Event()
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
        self._carrier = Carrier(settings, edges, self.table, self._packages_changed, self._problem)
        self._applier = Applier(
            look=self._look, carry=self._carrier.carry, looked=self._looked, clock=edges.clock, uniform=edges.uniform
        )
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

    # ------------------------------------------------------------------------------------------- its life

    async def run(self) -> None:
        """Be this node's agent until cancelled; hosts stay. Raises NameTaken, before anything was touched."""
        await self._load()
        await self._first_registration()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._learn_epoch(), name="learn the latest epoch")
                tasks.create_task(self._registrar.stay(), name="stay registered")
                tasks.create_task(self._registrar.publish(), name="publish checks")
                tasks.create_task(self.table.follow(), name="follow keeper")
                tasks.create_task(self._applier.run(), name="apply")
                tasks.create_task(self._probes.run(), name="probes")
                tasks.create_task(self._watch_keeper(), name="watch the keeper's problems")
                tasks.create_task(self._note_good(), name="note what runs well")
                tasks.create_task(self._verify_packages(), name="verify packages")
                tasks.create_task(self._edges.bus.run(self._host_of, self._problem), name="bus")
        except* NameTaken as taken:
            raise taken.exceptions[0] from None

    async def close(self) -> None:
        """Ledger and bus are closed; hosts and their entries in Consul stay, the alias checks say that the agent is gone."""
        await self._edges.bus.close()
        await self._edges.ledger.close()

    async def stop_hosts(self, timeout: float = 60.0) -> tuple[str, ...]:
        """Every host of this node is stopped, and gone from Consul if that answers; what is still up is returned.

        For after `run` has ended: a running agent would heal them.
        """
        keeper = self._edges.keeper
        for row in await keeper.rows():
            if row.state not in (ReplicaState.STOPPED, ReplicaState.FAILED):
                await keeper.stop(row.replica)
        left: tuple[str, ...] = ()
        for _ in range(int(timeout / 0.05)):
            rows = await keeper.rows()
            left = tuple(r.replica for r in rows if r.state not in (ReplicaState.STOPPED, ReplicaState.FAILED))
            if not left:
                break
            await asyncio.sleep(0.05)
        for row in await keeper.rows():  # not stopped by somebody's hand: the next agent starts them again
            if row.replica not in left:
                await keeper.forget(row.replica)
        try:
            await self._registrar.leave()
        except TdieError as error:  # Consul's checks say so by themselves; what runs here must end all the same
            log.warning("entries in Consul stay until their checks lapse", error=str(error))
        return left

    async def _watch_keeper(self) -> None:
        """What the keeper says of itself is a problem of this node while it lasts."""
        known: set[str] = set()
        while True:
            try:
                found = dict(await self._edges.keeper.problems())
            except Waiting:
                found = {}  # that it is away is said by who follows it
            if not self._limits_wanted():
                found.pop(SANDBOX_DEGRADED, None)  # nobody asked for limits: nothing is missing
            for code in known | found.keys():
                self._problem(code, found.get(code, ""))
            known = set(found)
            await asyncio.sleep(KEEPER_LOOK)

    async def _note_good(self) -> None:
        """Packages whose replicas are healthy are kept for a rollback."""
        while True:
            await self._proof.wait()
            self._proof.clear()
            rows = self.table.rows.values()
            found = {code.digest for row in rows if row.healthy for code in _codes(row)} - self._proven
            if found:
                try:
                    await self._edges.installer.good(found)
                    self._proven |= found
                except Waiting as error:
                    log.warning("not noted that packages run well", error=str(error))

    async def _verify_packages(self) -> None:
        """Every installed package is read again at the start and then on a slow beat; a damaged one is fetched anew."""
        await self._loaded.wait()
        while True:
            try:
                wrong = await self._edges.installer.verify()
            except Waiting as error:
                log.warning("packages could not be verified", error=str(error))
                wrong = {}
            self._corrupt |= wrong
            for name in wrong.values():
                log.error("a package is damaged on this disk, it is fetched anew", package=name)
            if wrong:
                self._packages_changed()
            await asyncio.sleep(self.settings.verify_every)

    def _limits_wanted(self) -> bool:
        orders = self.assignment.replicas if self.assignment else ()
        return any(order.spec.resources.cpu or order.spec.resources.memory for order in orders)

    @property
    def ready(self) -> bool:
        """It knows what it accepted and what runs here."""
        return self._loaded.is_set() and self.table.known

    @property
    def assignment(self) -> Assignment | None:
        """The accepted assignment."""
        return self._carrier.assignment

    async def _load(self) -> None:
        held = await self._edges.ledger.load()
        self._remembered = held
        self._epoch = held.epoch
        self._carrier.accept(held.assignment)
        self._carrier.ports.update(held.ports)
        self._edges.bus.know_local(subscriptions_of(held.assignment))
        self.book.say(epoch=held.epoch, accepted=_accepted(held.assignment))
        if held.rebuilt:
            self._problem("STATE_REBUILT", held.rebuilt)
        else:
            self._epoch_known = True
        self._packages_changed()
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

    async def _learn_epoch(self) -> None:
        """Without its ledger a node would obey a leader that was replaced long ago: Consul knows the latest epoch."""
        key = keys.epoch(self.settings.cluster)
        while not self._epoch_known:
            try:
                found = await self._edges.consul.get(key)
                async with self._commands:
                    self._epoch = max(self._epoch, int(found.value) if found else 0)
                    await self._edges.ledger.save_epoch(self._epoch)
                    self._epoch_known = True
                self.book.say(epoch=self._epoch)
                log.info("the ledger was lost; Consul says which epoch is the latest", epoch=self._epoch)
            except (TdieError, ValueError) as error:
                log.warning("the ledger was lost, and Consul does not say which epoch is the latest", error=str(error))
                await asyncio.sleep(_EPOCH_PAUSE)

    def _must_know_epoch(self) -> None:
        if not self._epoch_known:
            raise Waiting(
                "the ledger was lost, and Consul has not said yet which leadership is the latest",
                code="EPOCH_UNKNOWN",
                where=self.settings.node,
            )

    # ------------------------------------------------------------------------------------------- the node API

    async def claim(self, claim: Claim) -> Claimed:
        """From now on nobody with a lower epoch commands this node."""
        await self._loaded.wait()
        self._must_know_epoch()
        async with self._commands:
            if claim.epoch < self._epoch:
                raise StaleLeader(f"epoch {claim.epoch} < {self._epoch}", self._epoch)
            if claim.epoch > self._epoch:
                await self._edges.ledger.save_epoch(claim.epoch)
                self._epoch = claim.epoch
                self.book.say(epoch=claim.epoch)
                log.info("claimed", epoch=claim.epoch)
            return Claimed(report=self.book.whole(), assignment=self.assignment)

    async def assign(self, offered: Assignment) -> Accepted:
        """The assignment is in force and on disk; sending it again changes nothing."""
        await self._loaded.wait()
        self._must_know_epoch()
        if (offered.cluster, offered.node) != (self.settings.cluster, self.settings.node):
            raise Invalid(f"this is node {self.settings.cluster}/{self.settings.node}", code="WRONG_NODE")
        if offered.digest not in _digests(offered):
            raise Invalid(f"the content does not have digest {offered.digest}", code="DIGEST_MISMATCH")
        async with self._commands:
            if offered.epoch < self._epoch:
                raise StaleLeader(f"epoch {offered.epoch} < {self._epoch}", self._epoch)
            if offered.epoch > self._epoch:
                raise Refused(f"epoch {offered.epoch} has not claimed this node", code="NOT_CLAIMED")
            held = self.assignment
            if held is not None and offered.number == held.number:
                if offered.digest != held.digest:
                    raise Refused(f"generation {offered.generation} was another assignment", code="GENERATION_REUSED")
                return Accepted(epoch=held.epoch, generation=held.generation, digest=held.digest)
            if held is not None and offered.number < held.number:
                raise StaleLeader(f"generation {offered.generation} < {held.generation}", self._epoch)
            await self._edges.ledger.save_assignment(offered)
            return self._accept(offered)

    async def report(self, index: int, wait: float, agent: str | None) -> Report:
        """What changed after `index`; waits up to `wait` seconds for something to tell."""
        await self._loaded.wait()
        return await self.book.wait(index, wait, agent)

    async def kill(self, replica: str) -> None:
        """The host is being stopped; if it is ordered it comes back, as after any drift."""
        if replica not in self.table.rows:
            raise Missing(f"no process '{replica}' on {self.settings.node}")
        await self._edges.keeper.stop(replica)

    def knows(self, replica: str) -> bool:
        """It is ordered here, or the keeper has a row of it; also while that is not known yet."""
        return not self.ready or replica in self._carrier.orders or replica in self.table.rows

    def log_path(self, replica: str) -> str:
        """Where the replica's log is, also after it stopped."""
        row = self.table.rows.get(replica)
        if row is None and replica not in self._carrier.orders:
            raise Missing(f"no process '{replica}' on {self.settings.node}")
        return (row.order.log if row else "") or self._carrier.log_path(replica)

    def _accept(self, offered: Assignment) -> Accepted:
        before = self._carrier.orders.keys() | self.table.rows.keys()
        self._carrier.accept(offered)
        self._edges.bus.know_local(subscriptions_of(offered))
        self._problem("STATE_REBUILT", "")
        self._applier.retry_now()
        self.book.say(accepted=_accepted(offered), settled=False)
        self._rows_changed(before | self._carrier.orders.keys())
        self._packages_changed()
        log.info(
            "accepted", epoch=offered.epoch, generation=offered.generation, commit=offered.commit[:8],
            replicas=len(offered.replicas),
        )  # fmt: skip
        return Accepted(epoch=offered.epoch, generation=offered.generation, digest=offered.digest)

    def _host_of(self, pid: int) -> HostOrder | None:
        """What the host with this process id runs, as the keeper says."""
        return next((row.order for row in self.table.rows.values() if row.pid == pid), None)

    # ------------------------------------------------------------------------------------------- what follows

    def _look(self, key: str) -> Step | None:
        """What to do for a replica or package now. Nothing before an assignment was accepted and the keeper was read."""
        if self.assignment is None or not self.table.known:
            return None
        if key.startswith("package "):
            return self._package_steps.get(key)
        return step_for(case_of(key, self._local(), self._carrier.orders, self._carrier.heirs))[0]

    def _local(self) -> Local:
        carrier = self._carrier
        made = self._edges.installer.environments().keys()
        return Local(carrier.assignment, carrier.installed, self.table.rows, made, carrier.in_place_refused)

    def _rows_changed(self, replicas: Iterable[str]) -> None:
        """These replicas may have changed in any way: tell the report, Consul and the probes, and look what to do."""
        orders, rows = self._carrier.orders, self.table.rows
        names = set(replicas)
        for name in names:
            order = orders.get(name)
            check = order.policy.health if order else HealthCheck()
            self._probes.consider(rows.get(name), name, check)
            row = rows.get(name)
            if row is not None and row.healthy and row.order.component.digest not in self._proven:
                self._proof.set()
            self._tell(name)
        heirs = {self._carrier.heirs[name] for name in names if name in self._carrier.heirs}
        renamed = {order.renamed_from for name in names if (order := orders.get(name)) and order.renamed_from}
        self._applier.look_again(names | heirs | renamed)

    def _all_read(self) -> None:
        """The keeper's rows are known (again): everything is looked at once."""
        ports = self._carrier.ports
        for row in self.table.rows.values():
            ports.setdefault(row.replica, row.order.port)
        self._rows_changed(self.table.rows.keys() | self._carrier.orders.keys() | self.book.rows.keys())
        self._packages_changed()
        self._registrar.complete()

    def _tell(self, replica: str) -> None:
        """The replica's row in the report, and its entry in Consul, are what is true now."""
        order, clock = self._carrier.orders.get(replica), self._edges.clock
        row = status_row(
            replica,
            order,
            self.table.rows.get(replica),
            failure=self._applier.failures.get(replica),
            probe=self._probes.result(replica),
            before=self.book.rows.get(replica) or self.by_hand.get(replica),
            now=clock.now(),
        )
        if is_by_hand(replica):
            self._tell_by_hand(replica, row)
        elif row is None:
            self.book.remove(replica)
            self._registrar.hide(replica)
        elif self.book.put(row):
            since = clock.wall() - timedelta(seconds=max(0.0, clock.now() - row.since))
            settings = self.settings
            shown = partial(
                entry, row, cluster=settings.cluster, node=settings.node, address=settings.address, since=since
            )
            self._registrar.show(replica, shown)

    def _tell_by_hand(self, replica: str, row: ReplicaStatus | None) -> None:
        """Told apart from what Git owns, and not in Consul."""
        if row is not None:
            self.by_hand[replica] = row
        else:
            self.by_hand.pop(replica, None)
        self.book.say(by_hand=[self.by_hand[name] for name in sorted(self.by_hand)])

    def packages_changed(self) -> None:
        """Somebody uploaded or deleted packages here."""
        self._packages_changed()

    def _packages_changed(self) -> None:
        """Packages came, went or are ordered: what is missing is fetched, and replicas that waited for one go on."""
        carrier = self._carrier
        carrier.installed = dict(self._edges.installer.installed())
        self._packages_stale = True
        self._corrupt = {d: name for d, name in self._corrupt.items() if d not in carrier.installed}
        damaged = ", ".join(sorted(set(self._corrupt.values())))
        self._problem(
            "PKG_CORRUPT", f"{damaged}: the bytes on this disk are not what their digest says" if damaged else ""
        )
        local = self._local()
        steps: list[Step] = [*fetches(local), *preparations(local)]
        if not steps and self.table.known and self.assignment is not None:
            used = in_use(self.assignment, self.table.rows.values())
            keep = self.assignment.policy.keep_versions
            steps += [Collect(digest) for digest in self._edges.installer.collectable(used, keep)]
        before = self._package_steps
        self._package_steps = {step.key: step for step in steps}
        waiting = {name for name, order in carrier.orders.items() if is_ready(order, local)}
        self._applier.look_again(before.keys() | self._package_steps.keys() | waiting)

    def _looked(self) -> None:
        """After each round: what failed, what is fetched, and whether anything is left to do."""
        failures = self._applier.failures
        said = [
            NodeProblem(code=f.error.code, detail=f"{_subject(f.step)}: {f.error.detail}") for f in failures.values()
        ]
        for key in failures.keys() | self._told_failures:
            if not key.startswith("package "):
                self._tell(key)
        self._told_failures = frozenset(failures)
        moving = any(row.state in _MOVING for row in self.table.rows.values())
        self.book.say(
            settled=self.assignment is not None and self.table.known and self._applier.idle and not moving,
            packages=self._packages() if self._applier.idle or self._package_steps or self._packages_stale else None,
            problems=sorted([*self._problems.values(), *said], key=lambda p: (p.code, p.detail)),
        )

    def _packages(self) -> tuple[PackageStatus, ...]:
        self._packages_stale = False
        carrier = self._carrier
        used = in_use(self.assignment, self.table.rows.values())
        manual = self._edges.installer.manual() - in_use(self.assignment, ())
        rows = [
            PackageStatus(package=found.package, state="Installed", used=digest in used, manual=digest in manual)
            for digest, found in carrier.installed.items()
        ]
        for key, step in self._package_steps.items():
            if isinstance(step, Fetch) and step.package.package.digest not in carrier.installed:
                failure = self._applier.failures.get(key)
                trying = failure is None or step.package.package.digest in carrier.fetching
                error = str(failure.error) if failure else ""
                state: Literal["Fetching", "Failed"] = "Fetching" if trying else "Failed"
                rows.append(PackageStatus(package=step.package.package, state=state, error=error))
        return tuple(sorted(rows, key=lambda r: (r.package.name, r.package.version, r.package.digest)))

    def _problem(self, code: str, detail: str) -> None:
        """A problem of the node as a whole is there, or with an empty detail healed."""
        before = self._problems.get(code)
        if detail and (before is None or before.detail != detail):
            self._problems[code] = NodeProblem(code=code, detail=detail)
            log.warning("problem", code=code, detail=detail)
        elif not detail and self._problems.pop(code, None) is not None:
            log.info("healed", code=code)
        else:
            return
        self._applier.look_again(())


def _accepted(assignment: Assignment | None) -> Accepted | None:
    if assignment is None:
        return None
    return Accepted(epoch=assignment.epoch, generation=assignment.generation, digest=assignment.digest)


def _digests(offered: Assignment) -> Iterator[str]:
    """The digests that fit the content: as this version writes it, and as its sender wrote it (without newer fields)."""
    yield content_digest(offered.packages, offered.replicas, offered.policy)
    raw = offered.model_dump(mode="json", by_alias=True, exclude_unset=True)
    packages = [order["package"] for order in raw.get("packages", [])]
    yield digest_of({"packages": packages, "replicas": raw.get("replicas", [])})


def _codes(row: HostRow) -> tuple[Code, ...]:
    return (row.order.component, *([row.order.publisher] if row.order.publisher else []))


def _subject(step: Step) -> str:
    match step:
        case Fetch():
            return str(step.package.package)
        case Prepare():
            return "+".join(digest[:12] for digest in step.environment.split("+"))
        case Collect():
            return step.digest[:12]
    return step.replica
