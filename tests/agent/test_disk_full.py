"""A disk that is full, or errs, at any write of an agent: what runs keeps running, nothing is torn, and it goes on by itself.

The real agent with its real ledger, packages and records, on virtual time; only hosts and Consul are simulated. FAULTS row 44.
"""

from __future__ import annotations

import asyncio
import errno
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Protocol

import httpx
import pytest

from agent import keys
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.edges import Edges, NodeSettings
from agent.errors import TdieError, Waiting
from agent.keeper.protocol import HostRow
from agent.ledger import SqliteLedger
from agent.node import Agent
from agent.packages.digest import content_digest as digest_of_files
from agent.packages.environments import Environments
from agent.packages.install import PackageInstaller
from agent.packages.pack import pack
from agent.packages.records import PackageRecords
from agent.packages.store import PackageStore, remove_tree
from agent.process_store import MachineProcesses
from agent.wire import (
    Assignment,
    Claim,
    PackageOrder,
    PackageRef,
    ReplicaOrder,
    ReplicaPolicy,
    ReplicaSpec,
    content_digest,
)
from reconciler.simulation.disk import SimPorts, SimProber
from reconciler.simulation.keeper import SimKeeper
from reconciler.simulation.machine import Machine
from reconciler.simulation.virtual import VirtualClock, VirtualLoop, run
from reconciler.simulation.watchers import Nobody
from tests.disk_trouble import Disk, Filler, counted, small_disk

DISK_CODES = {"DISK_FULL", "DISK_ERROR", "LEDGER_WRITE", "STORE_WRITE", "RECORDS_WRITE"}
PATIENCE = 130.0  # virtual seconds with a bad disk: two tries of what is tried each 60 s
HEALED = 400.0  # and after it: one more try of what waits longest


def files(version: str) -> dict[str, tuple[bytes, bool]]:
    manifest = {"name": "web", "version": version, "runtime": "exec", "command": ["sh", "content/run.sh"]}
    return {"manifest.json": (json.dumps(manifest).encode(), False), "content/run.sh": (b"exec sleep 9\n", True)}


def package(version: str) -> PackageRef:
    return PackageRef(name="web", version=version, digest=digest_of_files(files(version)))


ARCHIVES = {package(version).digest: pack(files(version)) for version in ("1.0.0", "2.0.0")}


def order(replica: str, version: str, lease: str = "none") -> ReplicaOrder:
    spec = ReplicaSpec(package=package(version))
    policy = ReplicaPolicy.model_validate({"lease": lease})
    return ReplicaOrder(
        replica=replica,
        instance=replica.split(".")[0],
        spec=spec,
        spec_hash=spec.hash(),
        policy=policy,
        commit="c" * 40,
    )


def assignment(epoch: int, *replicas: ReplicaOrder) -> Assignment:
    wanted = {r.spec.package.digest: r.spec.package for r in replicas}
    packages = tuple(PackageOrder(package=p, sources=(f"http://somewhere/{d}",)) for d, p in wanted.items())
    digest = content_digest(packages, replicas)
    return Assignment(
        cluster="c", node="a", epoch=epoch, generation=1, packages=packages, replicas=replicas, digest=digest
    )


SINGLE = order("single.0", "1.0.0", "strict")  # it is in both, so it is never touched
BEFORE = assignment(1, order("web.0", "1.0.0"), order("web.1", "1.0.0"), SINGLE)
AFTER = assignment(2, order("web.0", "2.0.0"), order("web.1", "2.0.0"), SINGLE)


@dataclass
class Watch(Nobody):
    """Sees every host that is told to stop."""

    node: Node | None = None
    stopped: list[str] = field(default_factory=list)

    def stops(self, node: str, row: HostRow) -> None:
        assert self.node is not None
        agent = self.node.agent
        assert agent is not None
        assert agent.assignment == AFTER, f"{row.replica} is stopped without an accepted order"
        assert package("2.0.0").digest in self.node.store.installed(), (
            f"{row.replica} is stopped before its successor is here"
        )
        self.stopped.append(row.replica)


class Node:
    """One machine with its disk; an agent may be started on it any number of times."""

    def __init__(self, folder: Path) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.folder, self.clock = folder, VirtualClock(loop)
        self.machine = Machine("a", self.clock, witness=Watch(self))
        self.keys = Store(now=self.clock.now)
        self.consul = MemoryConsul(self.keys)
        self.store = PackageStore(folder / "packages")
        self.client = httpx.AsyncClient(transport=httpx.MockTransport(self._serve))
        self.agent: Agent | None = None
        self.refused: set[str] = set()  # why agents could not start
        self._numbers = count()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """An agent runs, and the ledger was read; one that cannot start is tried again, as systemd would."""
        while True:
            try:
                agent = self._made()
                self._task = asyncio.create_task(agent.run(), name="agent")
                while not agent.ready and not self._task.done():
                    await asyncio.sleep(0.1)
                if self._task.done():
                    self._task.result()
                self.agent = agent
                return
            except TdieError as error:
                if error.code not in DISK_CODES:
                    raise
                self.refused.add(error.code)
                await asyncio.sleep(5)

    async def stop(self) -> None:
        assert self._task is not None
        assert self.agent is not None
        agent, self.agent = self.agent, None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await agent.close()

    def check_alive(self) -> None:
        """The agent did not end by itself."""
        if self.agent is not None and self._task is not None and self._task.done():
            self._task.result()
            raise AssertionError("the agent ended")

    @property
    def pids(self) -> dict[str, tuple[int | None, str]]:
        return {name: (row.pid, row.order.component.version) for name, row in sorted(self.machine.rows.items())}

    def _made(self) -> Agent:
        self.store = PackageStore(self.folder / "packages")
        self.store.open()
        records = PackageRecords(self.folder / "packages.sqlite")
        environments = Environments(self.folder / "environments")
        environments.open()
        installer = PackageInstaller(
            self.store, environments, records, self.client, wall=lambda: self.clock.wall().timestamp()
        )
        installer.look_at_records(records.all())
        edges = Edges(
            clock=self.clock, consul=self.consul, keeper=SimKeeper(self.machine),
            ledger=SqliteLedger(self.folder / "ledger.sqlite"), installer=installer, ports=SimPorts(),
            prober=SimProber(), uniform=lambda low, high: (low + high) / 2, agent=f"agent-{next(self._numbers)}",
            boot_id="boot", processes=MachineProcesses(self.folder / "processes.sqlite", "nobody's"),
        )  # fmt: skip
        return Agent(NodeSettings(cluster="c", node="a", api="http://a:5100", address="a"), edges)

    def _serve(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=ARCHIVES[request.url.path[1:]])


async def command(node: Node, wanted: Assignment) -> set[str]:
    """The assignment is accepted; comes back with the codes of what was refused on the way, as a controller would see them."""
    codes: set[str] = set()
    node.keys.put(keys.epoch("c"), str(wanted.epoch).encode())
    while True:
        try:
            if node.agent is None:
                raise Waiting("no agent answers", code="NO_ANSWER")
            await node.agent.claim(Claim(epoch=wanted.epoch))
            await node.agent.assign(wanted)
            return codes
        except TdieError as error:
            codes.add(error.code)
            await asyncio.sleep(1)


async def settled(node: Node, wanted: Assignment) -> None:
    def done() -> bool:
        agent = node.agent
        if agent is None or agent.assignment != wanted or not agent.book.whole().settled or agent.book.whole().problems:
            return False
        rows = agent.book.rows
        wished = {order.replica: order.spec_hash for order in wanted.replicas}
        return {name: row.spec_hash for name, row in rows.items() if row.healthy} == wished

    async with asyncio.timeout(HEALED):
        while not done():
            node.check_alive()
            await asyncio.sleep(0.5)


async def noted(node: Node, wanted: Assignment) -> None:
    """What runs well is known to do so, and so is kept for a rollback."""
    records = PackageRecords(node.folder / "packages.sqlite")
    async with asyncio.timeout(HEALED):
        while {o.package.digest for o in wanted.packages} - {
            d for d, record in records.all().items() if record.good_at
        }:
            node.check_alive()
            await asyncio.sleep(5)


class Trouble(Protocol):
    """What goes wrong with the disk of a folder, and for how long."""

    def begin(self) -> None: ...

    def met(self) -> bool:
        """Whether anything was refused so far, and the disk is still bad."""
        ...

    def heal(self) -> None: ...


class NthWrite:
    """One write is refused, or it and everything after it."""

    def __init__(self, disk: Disk, number: int, error: int, *, lasting: bool) -> None:
        self._disk, self._number, self._error, self._lasting = disk, number, error, lasting

    def begin(self) -> None:
        self._disk.fail_at(self._number, self._error, lasting=self._lasting)

    def met(self) -> bool:
        return bool(self._disk.refused) and self._lasting

    def heal(self) -> None:
        self._disk.heal()


class Full:
    """A real file system with this many free pages."""

    def __init__(self, folder: Path, pages: int) -> None:
        self._filler, self._pages = Filler(folder), pages

    def begin(self) -> None:
        self._filler.fill(self._pages)

    def met(self) -> bool:
        return self._pages == 0

    def heal(self) -> None:
        self._filler.empty()


async def _trouble(folder: Path, trouble: Trouble, *, restart: bool) -> None:
    """A change of everything meets a bad disk, which is good again later."""
    node = Node(folder)
    await node.start()
    await command(node, BEFORE)
    await settled(node, BEFORE)
    single = node.pids["single.0"]
    starting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    starting.set_result(None)
    trouble.begin()
    if restart:
        await node.stop()
        trouble.begin()  # also for what closing gave back
        starting = asyncio.create_task(node.start(), name="systemd")
    commanding = asyncio.create_task(command(node, AFTER), name="controller")
    seen: set[str] = set()
    for _ in range(int(PATIENCE)):
        await asyncio.sleep(1)
        node.check_alive()
        seen |= {problem.code for problem in node.agent.book.whole().problems} if node.agent else set()
        assert node.pids.keys() == {"web.0", "web.1", "single.0"}
        assert node.pids["single.0"] == single
    met = trouble.met()
    trouble.heal()
    async with asyncio.timeout(HEALED):
        await starting
        seen |= await commanding | node.refused
    await settled(node, AFTER)
    await noted(node, AFTER)
    assert node.pids["single.0"] == single
    assert "STATE_REBUILT" not in seen
    assert not met or seen & DISK_CODES, f"nobody was told: {seen}"
    await node.stop()
    kept = SqliteLedger(folder / "ledger.sqlite")
    held = await kept.load()
    assert (held.epoch, held.assignment, held.rebuilt) == (2, AFTER, "")
    await kept.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory when there is such a file system: hundreds of runs wait for nothing else."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as made:
        yield Path(made)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize(
    ("error", "lasting"), [(errno.ENOSPC, True), (errno.EIO, True), (errno.EIO, False)], ids=["full", "broken", "once"]
)
def test_any_write_may_fail(folder: Path, error: int, *, lasting: bool, restart: bool) -> None:
    for number in count(1):
        inside = folder / str(number)
        inside.mkdir()
        with counted(inside) as disk, noting(f"write {number}", disk.refused):
            run(_trouble(inside, NthWrite(disk, number, error, lasting=lasting), restart=restart))
        check_tidy(inside)
        if not disk.refused:
            break
    assert number > 25, "hardly anything was written, so hardly anything was tried"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_a_real_file_system_is_full(tmp_path: Path, *, restart: bool) -> None:
    with small_disk(tmp_path, "1m"):
        for pages in range(0, 24, 2):
            inside = tmp_path / str(pages)
            inside.mkdir()
            with noting(f"{pages} pages free", []):
                run(_trouble(inside, Full(inside, pages), restart=restart))
            check_tidy(inside)
            remove_tree(inside)


@contextmanager
def noting(what: str, refused: list[str]) -> Iterator[None]:
    """A failure says at which write."""
    try:
        yield
    except BaseException as raised:
        raised.add_note(f"{what}: {refused[:3]}")
        raise


def check_tidy(folder: Path) -> None:
    """The next agent finds nothing half-done, and no file was put aside as damaged."""
    PackageStore(folder / "packages").open()
    assert not [*folder.glob("packages/.partial-*"), *folder.glob("*.bad*")]
