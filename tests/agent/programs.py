"""The real agent program in a folder of its own, with its keeper and hosts; nothing of it is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from agent.client import NodeClient
from agent.clock import SystemClock
from agent.errors import TdieError, Waiting
from agent.expiry import Expiry, FarClock
from agent.keeper.client import KeeperClient
from agent.wire import Accepted, Assignment, Report


@dataclass
class Program:
    """One agent program in a folder of its own."""

    data: Path
    consul: str
    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *flags: str, python: Sequence[str] = (sys.executable,)) -> subprocess.Popen[bytes]:
        command = [
            *python,
            "-m",
            "agent",
            "--data",
            str(self.data),
            "--node",
            f"n{self.port}",
            "--consul",
            self.consul,
        ]
        with (self.data.parent / "agent.log").open("ab") as log:
            process = subprocess.Popen([*command, "--port", str(self.port), *flags], stdout=log, stderr=log)
        self.processes.append(process)
        return process

    async def ready(self, http: httpx.AsyncClient) -> None:
        """It knows what it accepted and what runs here."""
        async with asyncio.timeout(40):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(f"{self.api}/readyz")).is_success:
                        return
                await asyncio.sleep(0.03)


@contextmanager
def programs(folder: Path, consul: str, port: int) -> Iterator[Program]:
    """An agent that is not started yet; in the end it, its keeper and its hosts are gone."""
    made = Program(folder / "data", consul, port)
    with ended(made):
        yield made


@contextmanager
def ended(program: Program) -> Iterator[None]:
    """At the end the agent, its keeper and its hosts are gone."""
    try:
        yield
    finally:
        for process in program.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        with ThreadPoolExecutor(1) as aside:  # there may be a running loop here
            aside.submit(asyncio.run, _end_keeper(program.data)).result()


async def _end_keeper(data: Path) -> None:
    async with KeeperClient(data / "keeper.sock") as keeper:
        with contextlib.suppress(Waiting):  # it never began, or has ended already
            await keeper.shutdown()


async def report_when(client: NodeClient, api: str, true: Callable[[Report], bool]) -> Report:
    async with asyncio.timeout(40):
        while True:
            try:
                report = await client.report(api, 0, 0.0, "")
                if true(report):
                    return report
            except TdieError:
                pass  # it is still starting
            await asyncio.sleep(0.03)


async def soon(client: NodeClient, api: str, seconds: float = 30.0) -> Expiry:
    """So many seconds from now on the clock of the agent's machine."""
    report, now = await client.report(api, 0, 0.0, ""), SystemClock().now
    return FarClock.of(report, now()).after(seconds, now())


async def assign(client: NodeClient, api: str, assignment: Assignment) -> Accepted:
    """The agent has it on disk."""
    return await client.assign(api, assignment, await soon(client, api))


def alive(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}").exists()
