"""The real loop over 500 instant nodes with 1,000 instances × 10 (LIMITS §3, goals 8–10, 12): `python -m tests.bench loop`."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import structlog

import reconciler.loop as loop_module
from agent.clock import SystemClock
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from reconciler.app import freeze_heap
from reconciler.board import Board
from reconciler.edges import Edges
from reconciler.execution.leadership import Leadership
from reconciler.loop import Loop
from reconciler.model.observed import Record
from reconciler.planning import plan
from reconciler.simulation.executed import empty_fleet, executed
from reconciler.simulation.source import SimSource
from reconciler.source.source import GitSource
from reconciler.source.sourced import Sourced
from reconciler.wakeups import Wakeups
from tests.bench import figures
from tests.bench.bench_planning import INSTANCES, NODES, NOW, REPLICAS, desired, instance
from tests.bench.instant import CountedConsul, InstantNodes, package_url
from tests.bench.system import git

CLUSTER = "bench"
PER_FOLDER = 100  # files
AT_100K = 400.0  # MiB: the goal at 100,000 replicas


class Measured:
    """A running controller, and what its cycles cost."""

    def __init__(self) -> None:
        self.wanted = desired()
        self.clock = SystemClock()
        self.memory = MemoryConsul(Store(self.clock.now))
        self.consul = CountedConsul(self.memory)
        self.nodes = InstantNodes(CLUSTER, list(self.wanted.cluster.nodes))
        self.source, self.wakeups = SimSource(), Wakeups()
        self.board = Board(CLUSTER, self.clock)
        leadership = Leadership(CLUSTER, "bench", "http://127.0.0.1:1", consul=self.consul, clock=self.clock)
        edges = Edges(self.source, self.consul, self.nodes, self.clock, package_url)
        self.loop = Loop(CLUSTER, edges, leadership, self.board, self.wakeups, once_healthy=freeze_heap)
        self.cpu: list[float] = []  # ms of each cycle
        self.wall: list[float] = []
        self.plans: list[float] = []
        self.pauses: list[float] = [0.0]
        self._collecting = 0.0
        self.cycled = asyncio.Event()
        self._measure()
        gc.callbacks.append(self._collected)

    def _measure(self) -> None:
        cycle = self.loop.cycle

        async def measured(*given):  # type: ignore[no-untyped-def]
            cpu, wall = time.thread_time(), time.perf_counter()
            settled = await cycle(*given)
            self.cpu.append((time.thread_time() - cpu) * 1000)
            self.wall.append((time.perf_counter() - wall) * 1000)
            self.cycled.set()
            return settled

        def planned(*given):  # type: ignore[no-untyped-def]
            began = time.perf_counter()
            made = plan(*given)
            self.plans.append((time.perf_counter() - began) * 1000)
            return made

        self.loop.cycle = measured  # type: ignore[method-assign]
        loop_module.plan = planned  # type: ignore[attr-defined]

    def _collected(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = time.perf_counter()
        else:
            self.pauses.append((time.perf_counter() - self._collecting) * 1000)

    async def until(self, done: Callable[[], bool], seconds: float = 120.0) -> None:
        """Cycles have gone on until this is true."""
        async with asyncio.timeout(seconds):
            while not done():
                self.cycled.clear()
                await self.cycled.wait()

    async def healthy(self, commit: str) -> None:
        await self.until(
            lambda: self.board.plan is not None and self.board.plan.commit == commit and self.board.plan.healthy
        )
        await asyncio.sleep(0.05)  # the last reports of this round are in, so that the next look finds nothing new


async def _loop() -> None:
    bench = Measured()
    program = _rss()
    figures.value("RSS of the program before anything is known", program, "MiB")
    await bench.nodes.join(bench.memory, CLUSTER)
    bench.source.push(Sourced(bench.wanted, bench.wanted.commit))
    began = time.perf_counter()
    running = asyncio.create_task(bench.loop.run(), name="loop")
    try:
        await bench.healthy(bench.wanted.commit)
        seconds = time.perf_counter() - began
        figures.value(
            f"election → {INSTANCES * REPLICAS:,} replicas on {NODES} nodes reported healthy", seconds, "s", 30
        )
        bench.pauses[1:] = []
        await _nothing(bench)
        await _one(bench)
        figures.value("RSS with all of it known, simulated agents included (goal: at 100,000)", _rss(), "MiB", AT_100K)
        figures.value("… beyond the program", _rss() - program, "MiB")
        figures.value("longest pause of the garbage collector since then", max(bench.pauses), "ms", 20)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _nothing(bench: Measured) -> None:
    calls, writes, cpu = bench.nodes.calls, bench.consul.writes, []
    for _ in range(200):
        bench.cpu.clear()
        bench.cycled.clear()
        bench.wakeups.wake("report")
        await bench.cycled.wait()
        cpu.append(bench.cpu[-1])
    figures.line("no-op cycle, CPU", cpu, "ms", 1)
    figures.value("… calls to nodes in 200 of them", bench.nodes.calls - calls, "", 0)
    figures.value("… Consul writes in 200 of them", bench.consul.writes - writes, "", 0)


async def _one(bench: Measured) -> None:
    plans, cycles, healthy, state = [], [], [], bench.wanted
    for number in range(1, 31):
        name = f"instance-{number:04}"
        changed = {**state.instances, name: instance(name, f"1.{number}.0")}
        state = replace(state, commit=f"c{number}", instances=changed)
        bench.plans.clear()
        bench.wall.clear()
        began = time.perf_counter()
        bench.source.push(Sourced(state, state.commit))
        await bench.until(lambda: bool(bench.wall))
        plans.append(bench.plans[0])
        cycles.append(bench.wall[0])
        await bench.until(lambda made=state.commit: bench.board.plan.commit == made and bench.board.plan.healthy)  # type: ignore[union-attr,misc]
        healthy.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.05)
    figures.line("plan after a one-file change, in the loop", plans, "ms", 10)
    figures.line("… its whole cycle, with sending", cycles, "ms")
    figures.line("… until all of it is reported healthy (10, one after another)", healthy, "ms")


async def _git(folder: Path) -> None:
    _repository(folder)
    source = GitSource(str(folder / "repo"), "main", mirror_dir=folder / "mirror", cache_dir=folder / "packages")
    began = time.perf_counter()
    found = await source.look()
    read = time.perf_counter() - began
    wanted = found.desired
    if wanted is None:
        raise RuntimeError(f"{found.problems[:3]} {found.trouble}")
    await source.close()
    empty = empty_fleet(wanted)
    began = time.perf_counter()
    first = plan(wanted, empty, Record(), NOW)
    planned = time.perf_counter() - began
    fleet = executed(first, empty, NOW)
    began = time.perf_counter()
    plan(wanted, fleet, Record(), NOW)
    again = time.perf_counter() - began
    documents = len(wanted.instances) + 40 + 1
    figures.value(f"cold: clone, read, validate, resolve {documents:,} documents", read, "s")
    figures.value("… and the first plan onto an empty fleet", read + planned, "s", 1.5)
    figures.value("… or the plan of a new leader, everything runs", read + again, "s", 1.5)


def _repository(folder: Path) -> None:
    repo = folder / "repo"
    git(folder, "init", "--quiet", "--initial-branch=main", str(repo))
    nodes = "\n".join(f"    - {{name: node-{n:03}, labels: {{zone: {'abc'[n % 3]}}}}}" for n in range(NODES))
    packages = []
    for n in range(40):
        content = repo / "packages" / f"package-{n}" / "content"
        content.mkdir(parents=True)
        (content / f"bench_{n}.py").write_text(f"NUMBER = {n}\n")
        manifest = f'{{"name": "package-{n}", "version": "1.0.0", "kind": "component", "componentType": "bench_{n}:X", '
        schema = '"settingsSchema": {"type": "object", "properties": {"path": {"type": "string"}, "filter": {"type": "string"}}}'
        (content.parent / "manifest.json").write_text(manifest + f'"contentRoot": "content", {schema}}}')
        packages.append(
            f"apiVersion: tdie/v1\nkind: Package\nmetadata: {{name: package-{n}}}\n"
            f"spec: {{version: 1.0.0, source: {{path: packages/package-{n}}}}}\n"
        )
    (repo / "packages.yaml").write_text("---\n".join(packages))
    (repo / "cluster.yaml").write_text(
        f"apiVersion: tdie/v1\nkind: Cluster\nmetadata: {{name: {CLUSTER}}}\nspec:\n  nodes:\n{nodes}\n"
    )
    for n in range(INSTANCES):
        path = repo / "instances" / f"{n // PER_FOLDER:02}" / f"instance-{n:04}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f"apiVersion: tdie/v1\nkind: Instance\nmetadata: {{name: instance-{n:04}}}\nspec:\n"
            f"  package: package-{n % 40}@1.0.0\n  replicas: {REPLICAS}\n"
            f'  settings: {{path: /srv/instance-{n:04}, filter: "*.xml"}}\n'
        )
    git(repo, "config", "user.name", "bench")
    git(repo, "config", "user.email", "bench@example.org")
    git(repo, "add", "--all")
    git(repo, "commit", "--quiet", "--message", "all")


def _rss() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


def _child(part: str) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="tdie-bench-") as folder:
        work: Awaitable[None] = _loop() if part == "loop" else _git(Path(folder).resolve())
        asyncio.run(work)  # type: ignore[arg-type]


def main() -> None:
    """Print the figures; each part in a process of its own, so that one is no burden for the other's memory."""
    for part in ("git", "loop"):
        subprocess.run([sys.executable, "-m", "tests.bench.bench_loop", part], check=True)


if __name__ == "__main__":
    _child(sys.argv[1])
