"""Who takes over, and how soon (LIMITS §3, goals 6 and 7), and that an agent which dies touches nothing: `python -m tests.bench
failover`. Real processes; Consul's checks of agents (TTL 2 s) and controllers (TTL 1 s) say who is gone, `lostAfter` is 0."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
import time
import urllib.request
from pathlib import Path

from agent import keys
from agent.clock import SystemClock
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.consul.process import embedded_command, free_port, running
from agent.edges import Edges, NodeSettings
from agent.keeper.client import KeeperClient
from agent.keeper.ensure import ensure_keeper
from agent.keeper.protocol import HostRow
from agent.ledger import SqliteLedger
from agent.node import Agent
from agent.packages.protocol import Installed
from agent.wire import Assignment, Claim, PackageOrder, PackageRef, ReplicaOrder, ReplicaSpec, content_digest
from reconciler.children import alive
from reconciler.simulation.disk import SimInstaller, SimPorts, SimProber
from reconciler.simulation.machine import Machine
from tests.bench import figures
from tests.bench.bench_hosts import MODULE
from tests.e2e.system import NODES, Status, System, kill, replicas, system, until

ROUNDS = 6
TRIALS, HOSTS = 1000, 5
AGENT_TTL, CONTROLLER_TTL = "2", "1"


def _standing(made: System) -> int:
    """How many controllers Consul sees well."""
    url = f"http://{made.consul}/v1/health/service/{keys.CONTROLLER_SERVICE}?passing"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return len(json.load(answer))


def _controllers(made: System) -> list[float]:
    """Milliseconds from kill -9 of the leader until its standby leads and every node obeys it."""
    running_now = {
        name: made.controller(name, "--beat-ttl", CONTROLLER_TTL, "--agent-ttl", AGENT_TTL) for name in ("c1", "c2")
    }
    for node in NODES:
        made.agent(node, "--beat-ttl", AGENT_TTL)
    made.settled()
    took = []
    for _ in range(ROUNDS):
        until(lambda: _standing(made) == len(running_now), "both controllers are there")
        before, epoch = made.settled(), made.status()["epoch"]
        leader = next(name for name in running_now if f'"{name}"' in made.key("leader"))
        began = time.perf_counter()
        running_now[leader].kill()

        def obeyed(status: Status, epoch: int = epoch) -> bool:
            return (status["epoch"] or 0) > epoch and all(node["presence"] == "alive" for node in status["nodes"])

        made.see(obeyed, "the standby leads")
        took.append((time.perf_counter() - began) * 1000)
        assert made.settled() == before, "a process was touched"
        running_now[leader].wait(10)
        running_now[leader] = made.controller(leader, "--beat-ttl", CONTROLLER_TTL, "--agent-ttl", AGENT_TTL)
    return took


def _nodes(made: System) -> list[float]:
    """Milliseconds from the death of everything on a machine until what may run elsewhere is healthy there."""
    took = []
    for number in range(ROUNDS):
        victim = NODES[number % len(NODES)]
        made.settled()
        rows = replicas(made.status())
        gone = {name: row["pid"] for name, row in rows.items() if row["node"] == victim}
        doomed = [made.process("agent", victim), made.process("agent.keeper", victim), *gone.values()]
        began = time.perf_counter()
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

        def moved(status: Status, gone: dict[str, int] = gone, victim: str = victim) -> bool:
            rows = [row for instance in status["instances"] for row in instance["replicas"]]
            well = {row["name"] for row in rows if row["healthy"] and row["node"] != victim}
            return all(name in well for name in gone if f".{victim}." not in name)

        made.see(moved, "its replicas run elsewhere")
        took.append((time.perf_counter() - began) * 1000)
        for pid in doomed:  # a host that started between two looks
            if alive(pid):
                kill(pid)
        made.agent(victim, "--beat-ttl", AGENT_TTL)
    made.settled()
    return took


async def _takeovers(folder: Path) -> None:
    port = free_port()
    async with running(
        embedded_command(None, port, "bench-consul"), port, "bench-consul", folder / "consul.log"
    ) as consul:

        def measure() -> tuple[list[float], list[float]]:
            with system(str(consul.address), failover={"lostAfter": "0s"}) as made:
                return _controllers(made), _nodes(made)

        controllers, nodes = await asyncio.to_thread(measure)
    figures.line("controller killed → standby leads, all nodes obey", controllers, "ms", 2500)
    figures.line("node killed → its replicas healthy elsewhere", nodes, "ms", 2500)


async def _restarts(folder: Path) -> None:
    """An agent is ended without a word and started again beside the same keeper and ledger, many times."""
    (folder / "content").mkdir()
    (folder / "content" / "tdie_bench_idle.py").write_text(MODULE)
    keeper = await ensure_keeper(folder / "data")
    clock = SystemClock()
    store = Store(now=clock.now)
    package = PackageRef(name="idle", version="1.0.0", digest="0" * 64)
    machine = Machine("n", clock)
    machine.packages[package.digest] = Installed(
        package, str(folder / "content"), component_type="tdie_bench_idle:Idle"
    )
    spec = ReplicaSpec(package=package)
    wanted = tuple(
        ReplicaOrder(replica=f"idle.{n}", instance="idle", spec=spec, spec_hash=spec.hash()) for n in range(HOSTS)
    )
    packages = (PackageOrder(package=package),)
    given = Assignment(
        cluster="c", node="n", epoch=1, generation=1, packages=packages, replicas=wanted,
        digest=content_digest(packages, wanted),
    )  # fmt: skip
    seen: set[tuple[tuple[int | None, int], ...]] = set()
    took = []
    for number in range(TRIALS + 1):
        client, ledger = KeeperClient(folder / "data" / "keeper.sock"), SqliteLedger(folder / "ledger.sqlite")
        edges = Edges(
            clock=clock, consul=MemoryConsul(store), keeper=client, ledger=ledger, installer=SimInstaller(machine, set()),
            ports=SimPorts(), prober=SimProber(), uniform=lambda low, high: low, agent=str(number), boot_id="b",
        )  # fmt: skip
        settings = NodeSettings(cluster="c", node="n", api="http://n:1", address="n", logs=str(folder))
        began = time.perf_counter()
        agent = Agent(settings, edges)
        task = asyncio.create_task(agent.run(), name="agent")
        if number == 0:
            await agent.claim(Claim(epoch=1))
            await agent.assign(given)
        async with asyncio.timeout(60):
            while not (agent.ready and agent.book.whole().settled and len(agent.book.rows) == HOSTS):
                await asyncio.sleep(0.001)
        took.append((time.perf_counter() - began) * 1000)
        rows: dict[str, HostRow] = dict(agent.table.rows)
        seen.add(tuple((rows[order.replica].pid, rows[order.replica].restarts) for order in wanted))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await ledger.close()
        await client.aclose()
    figures.line(f"agent started anew → knows its {HOSTS} hosts", took[1:], "ms")
    figures.value(
        f"processes touched in {TRIALS} restarts of an agent", float(len(seen) - 1), "sets of pids and restarts", 0
    )
    await keeper.shutdown()


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="tdie-bench-") as folder:
        asyncio.run(_restarts(Path(folder)))
        asyncio.run(_takeovers(Path(folder)))
