"""Composition root: one agent with the edges of a real machine."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path

import structlog

from agent import machine
from agent.api.for_hosts import app_for_hosts, listening_for_hosts
from agent.api.node_api import NodeFiles, node_app
from agent.api.packages import NodePackages
from agent.bus.edge import MachineBus
from agent.bus.peers import HttpPeers as BusPeers
from agent.bus.store import ThreadStore
from agent.bus.values import Limits
from agent.callers import Callers, people_file
from agent.client import http_client
from agent.clock import SystemClock
from agent.consul.address import Address
from agent.consul.client import ConsulClient
from agent.edges import Edges, NodeSettings
from agent.errors import Refused, TdieError, Waiting
from agent.host.agent_line import PACKAGES
from agent.keeper.client import KeeperClient
from agent.keeper.ensure import SOCKET, ensure_keeper, upgrade_keeper
from agent.keeper.linux import keeper_id
from agent.keeper.protocol import HostRow
from agent.leases.peers import HttpPeers
from agent.ledger import SqliteLedger
from agent.logfiles import keep_bounded
from agent.node import Agent
from agent.packages.environments import Environments
from agent.packages.install import PackageInstaller
from agent.packages.manager import PackageManager
from agent.packages.records import PackageRecords
from agent.packages.retention import versions_kept
from agent.packages.store import PackageStore
from agent.process_store import MachineProcesses
from agent.serving import Server
from agent.settings import DEFAULT_PORT, AgentSettings
from agent.tokens import TokenFile, check_bind

log = structlog.get_logger("agent")

RENEWED_WITHIN = 5.0  # seconds; leases are not renewed meanwhile
SHUTDOWN = 3  # seconds open requests get when the agent stops


class OwnKeeper(KeeperClient):
    """The keeper of this agent's data folder: one that is gone is started again when its rows are read."""

    def __init__(self, data: Path) -> None:
        super().__init__(data / SOCKET)
        self._data = data

    async def rows(self) -> tuple[HostRow, ...]:
        try:
            return await super().rows()
        except Waiting:
            await (await ensure_keeper(self._data)).aclose()
            rows = await super().rows()
            found = [row.replica for row in rows if row.pid]
            if found:
                log.warning(
                    "a new keeper looks after them", code="ORPHAN_RECOVERED", replicas=found[:20], hosts=len(found)
                )
            return rows

    async def renew(self, problem: Callable[[str, str], None]) -> None:
        """A keeper of other code than ours takes over ours, its hosts do not notice; one that cannot is a problem of the node."""
        try:
            done = await upgrade_keeper(self)
        except Waiting as error:  # who reads its rows starts one when there is none
            log.debug("the keeper was not compared with this agent", error=str(error))
        except TdieError as error:
            problem("KEEPER_OUTDATED", f"the keeper goes on with code that is not this agent's: {error}")
        else:
            if done:
                log.info("the keeper runs the code of this agent now, all hosts kept", code="KEEPER_UPGRADED", **done)


async def run_agent(settings: AgentSettings, *, stop_hosts: bool = False) -> None:
    """Be an agent until SIGTERM or SIGINT; hosts stay unless `stop_hosts`. Raises TdieError when it cannot start."""
    token: Callable[[], str] = TokenFile(settings.token_file) if settings.token_file else str
    callers = Callers(token, people_file(settings.people_file)) if settings.people_file else Callers(token)
    check_bind(settings.bind, settings.token_file is not None)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    with _only_one(settings.data), _listening(settings.bind, settings.port) as listening:
        async with _agent(settings, listening, token, callers) as (agent, server, keeper):
            running = asyncio.create_task(_run(agent, server, keeper, listening, settings), name="agent")
            stop = asyncio.create_task(stopping.wait(), name="stop")
            await asyncio.wait({running, stop}, return_when=asyncio.FIRST_COMPLETED)
            left = await agent.stop_hosts() if stop_hosts and not running.done() else ()
            await _end(running, stop)
            if stop_hosts:
                await agent.leave(left)
                left = (*left, *await keeper.shutdown())
                log.info("all hosts stopped" if not left else "some hosts are still up", left=left)
            else:
                up = sorted(name for name, row in agent.table.rows.items() if row.pid)
                log.info("agent stopped; its hosts keep running", hosts=len(up), replicas=up[:20])


async def _run(
    agent: Agent, server: Server, keeper: OwnKeeper, listening: socket.socket, settings: AgentSettings
) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listening]), name="node api")
    where = settings.data / "logs"
    logs = keep_bounded(
        where, largest=settings.log_size, keep=settings.log_parts, here=agent.knows, problem=agent.problem
    )
    bounding = asyncio.create_task(logs, name="keep logs bounded")
    renewing = asyncio.create_task(keeper.renew(agent.problem), name="renew the keeper")
    try:
        await asyncio.wait({renewing}, timeout=RENEWED_WITHIN)  # orders of ours may say what other code does not know
        await agent.run()
    finally:
        bounding.cancel()
        renewing.cancel()
        server.should_exit = True
        agent.book.close()
        await asyncio.wait({serving}, timeout=SHUTDOWN + 1)


async def _end(running: asyncio.Task[None], stop: asyncio.Task[bool]) -> None:
    stop.cancel()
    running.cancel()
    done, _ = await asyncio.wait({running})
    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


@asynccontextmanager
async def _agent(
    settings: AgentSettings, listening: socket.socket, token: Callable[[], str], callers: Callers
) -> AsyncIterator[tuple[Agent, Server, OwnKeeper]]:
    where = settings.packages
    store = PackageStore(settings.data / where.directory, manifest_name=where.manifest_name)
    records = PackageRecords(settings.data / where.store_path)
    for line in await asyncio.to_thread(store.open):
        log.warning("a package folder makes no sense, it is left alone", folder=line)
    environments = Environments(settings.data / "environments")
    await asyncio.to_thread(environments.open)
    http, probing = http_client(), http_client()
    clock = SystemClock()
    installer = PackageInstaller(
        store,
        environments,
        records,
        http,
        token=token,
        wall=lambda: clock.wall().timestamp(),
        keep=versions_kept(where.retention),
    )
    installer.look_at_records(await asyncio.to_thread(records.all))
    consul = _consul(settings)
    keeper = OwnKeeper(settings.data)
    bus = MachineBus(
        settings.data.absolute() / "bus.sock",
        ThreadStore(settings.data / "bus.sqlite"),
        cluster=settings.cluster,
        node=settings.node,
        consul=consul,
        peers=BusPeers(http, token),
        clock=clock,
        limits=Limits(attempts=settings.message_attempts, first_pause=settings.message_pause),
    )
    edges = Edges(
        clock=clock,
        consul=consul,
        keeper=keeper,
        ledger=SqliteLedger(settings.data / "ledger.sqlite"),
        installer=installer,
        ports=machine.MachinePorts(),
        prober=machine.MachineProber(probing),
        uniform=machine.uniform,
        agent=machine.new_id(),
        boot_id=machine.boot_id(),
        bus=bus,
        peers=HttpPeers(http, token),
        processes=MachineProcesses(settings.data / "processes.sqlite", keeper_id(settings.data)),
    )
    agent = Agent(_node_settings(settings, listening.getsockname()[1]), edges)
    manager = PackageManager(store, records, lambda: clock.wall().timestamp())
    packages = NodePackages(agent, store, records, installer, manager)
    app = node_app(agent, NodeFiles(settings.data, store.archive), packages, callers, bus.bus)
    for_hosts = Server(app_for_hosts(packages), grace=SHUTDOWN)
    try:
        async with _serving_hosts(for_hosts, settings.data / PACKAGES):
            yield agent, Server(app, grace=SHUTDOWN), keeper
    finally:
        for close in (installer.close, agent.close, consul.close, keeper.aclose, http.aclose, probing.aclose):
            await close()


@asynccontextmanager
async def _serving_hosts(server: Server, path: Path) -> AsyncIterator[None]:
    with listening_for_hosts(path) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]), name="packages for hosts")
        try:
            yield
        finally:
            server.should_exit = True
            await asyncio.wait({serving}, timeout=SHUTDOWN + 1)


def _consul(settings: AgentSettings) -> ConsulClient:
    address = Address.from_environ(os.environ, settings.consul)
    log.info("using Consul", address=str(address))
    return ConsulClient.from_environ(os.environ, address=address, token_file=settings.consul_token_file)


def _node_settings(settings: AgentSettings, port: int) -> NodeSettings:
    address = settings.advertise or _reachable(settings.bind)
    shown = f"[{address}]" if ":" in address else address
    return NodeSettings(
        cluster=settings.cluster,
        node=settings.node,
        api=f"http://{shown}:{port}",
        address=address,
        version=metadata.version("tdie"),
        labels=settings.labels,
        capacity=settings.capacity,
        logs=str((settings.data / "logs").absolute()),
        replicas=str((settings.data / "replicas").absolute()),
        beat_ttl=settings.beat_ttl,
        look_every=settings.look_every,
        verify_every=settings.packages.verify_every,
        env_by_hand={
            f"TDIE_API_{name}_FILE": str(path.absolute())
            for name, path in (("TOKEN", settings.token_file), ("PEOPLE", settings.people_file))
            if path is not None
        },
        about={"host": socket.gethostname(), "pid": str(os.getpid()), "data": str(settings.data.absolute())},
    )


def _reachable(bind: str) -> str:
    """The address others see when we listen on all of them: that of the interface towards the network."""
    if bind not in ("0.0.0.0", "::", ""):
        return bind
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


@contextlib.contextmanager
def _only_one(data: Path) -> Iterator[None]:
    """Hold the data folder; raises Refused (DATA_IN_USE) when another agent does."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    (data / "logs").mkdir(exist_ok=True, mode=0o700)
    with (data / "agent.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            raise Refused(f"another agent uses {data} (pid {file.read().strip()})", code="DATA_IN_USE") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket: on that port, or with 0 on 5100 or the next free one. Raises Waiting (PORT_IN_USE)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in (port,) if port else range(DEFAULT_PORT, DEFAULT_PORT + 500):
        # asyncio turns Nagle's algorithm off only for sockets that name their protocol: answers would wait 40 ms for an ACK.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(1024)
        except OSError as error:
            listener.close()
            if port:
                raise Waiting(f"{host}:{port}: {error.strerror}", code="PORT_IN_USE") from error
            continue
        with listener:
            yield listener
        return
    raise Waiting(f"no free port from {DEFAULT_PORT} on {host}", code="PORT_IN_USE")
