"""Figures of hosts beside their targets (LIMITS §3, goals 4, 5, 11): `python tests/bench/bench_hosts.py [COUNT]`."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from agent.keeper.client import KeeperClient
from agent.keeper.ensure import COMMAND, ensure_keeper
from agent.keeper.protocol import Code, HostOrder, HostRow
from tests.bench import figures

COLD = 15
COUNT = 300  # hosts alive
UPGRADES = 20
MODULE = """
from agent.sdk import Component

class Idle(Component):
    async def start(self):
        pass
"""
FULL = "import fastapi, uvicorn, httpx, asyncio, agent.host.runtime"  # what a host started cold would import


class Watched:
    """The newest row of each replica, and waiting for all of them to satisfy something."""

    def __init__(self, keeper: KeeperClient) -> None:
        self.rows: dict[str, HostRow] = {}
        self._keeper, self._moved = keeper, asyncio.Condition()

    async def follow(self) -> None:
        async for row in self._keeper.events():
            async with self._moved:
                self.rows[row.replica] = row
                self._moved.notify_all()

    async def until(self, done: Callable[[dict[str, HostRow]], bool]) -> float:
        async with asyncio.timeout(120), self._moved:
            await self._moved.wait_for(lambda: done(self.rows))
        return time.perf_counter()


def _order(root: Path, number: int, port: int = 0) -> HostOrder:
    code = Code("idle", "1.0.0", "0" * 64, str(root), "tdie_bench_idle:Idle")
    return HostOrder(f"idle.{number}", "idle", "bench", "spec", "python", code, log=str(root / "log"), port=port)


def pss(pid: int) -> float:
    """MiB of a process's proportional set."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no PSS")


async def _measure(root: Path, count: int) -> None:
    (root / "tdie_bench_idle.py").write_text(MODULE)
    cold = []
    for _ in range(COLD):
        began = time.perf_counter()
        await asyncio.to_thread(subprocess.run, [sys.executable, "-I", "-c", FULL], check=True)
        cold.append((time.perf_counter() - began) * 1000)
    figures.line("cold process with a host's imports", cold, "ms")
    keeper = await ensure_keeper(root / "data")
    watched = Watched(keeper)
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(watched.follow())
        try:
            await _hosts(keeper, watched, root, count, statistics.median(cold))
        finally:
            following.cancel()
            await keeper.shutdown()


async def _hosts(keeper: KeeperClient, watched: Watched, root: Path, count: int, cold: float) -> None:
    await keeper.start(_order(root, -1))
    await watched.until(lambda rows: "idle.-1" in rows and rows["idle.-1"].healthy)
    single = []
    for number in range(50):
        began = time.perf_counter()
        await keeper.start(_order(root, number))
        ended = await watched.until(lambda rows, n=number: f"idle.{n}" in rows and rows[f"idle.{n}"].healthy)  # type: ignore[misc]
        single.append((ended - began) * 1000)
    figures.line("start asked → healthy told, one at a time", single, "ms")
    figures.ratio("… against a cold process", cold / statistics.median(single), 50)
    began = time.perf_counter()
    await asyncio.gather(*(keeper.start(_order(root, number)) for number in range(50, count)))
    ended = await watched.until(lambda rows: len(rows) > count and all(row.healthy for row in rows.values()))
    each = (ended - began) * 1000 / (count - 50)
    figures.value(f"{count - 50} starts at once, each", each, "ms")
    figures.ratio("… against a cold process", cold / each, 50)
    memory = [pss(row.pid) for row in watched.rows.values() if row.pid]
    figures.line(f"PSS of an idle host whose API was not called, {count} alive", memory, "MiB", 4)
    about = await keeper.about()
    figures.value("PSS of the keeper", pss(about["pid"]), "MiB")
    figures.value("PSS of the zygote", pss(about["zygote"]["pid"]), "MiB")
    replaced = []
    for number in range(30):
        before = watched.rows[f"idle.{number}"]
        assert before.pid is not None
        began = time.perf_counter()
        os.kill(before.pid, signal.SIGKILL)
        ended = await watched.until(
            lambda rows, n=number, old=before.pid: rows[f"idle.{n}"].healthy and rows[f"idle.{n}"].pid != old  # type: ignore[misc]
        )
        replaced.append((ended - began) * 1000)
    figures.line("SIGKILL → replacement healthy", replaced, "ms", 20, 50)
    before_all = {row.replica: row.pid for row in watched.rows.values()}
    away = [(await keeper.upgrade(COMMAND, "bench"))["took"] * 1000 for _ in range(UPGRADES)]
    figures.line("the keeper becomes another release: nobody watches", away, "ms", 500, 1000)
    assert {row.replica: row.pid for row in await keeper.rows()} == before_all
    began = time.perf_counter()
    await asyncio.gather(*(keeper.stop(replica) for replica in list(watched.rows)))
    ended = await watched.until(lambda rows: all(row.state == "Stopped" for row in rows.values()))
    figures.value(f"{count + 1} stops at once, each", (ended - began) * 1000 / (count + 1), "ms")


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="tdie-bench-") as folder:
        asyncio.run(_measure(Path(folder), COUNT))
