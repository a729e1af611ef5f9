"""A keeper with real processes in a folder of its own, and its rows to wait on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Waiting
from agent.keeper.client import KeeperClient
from agent.keeper.protocol import Code, HostOrder, HostRow

MODULE = """
import asyncio, os, subprocess, sys
from agent.sdk import Component, MessagePublisher, Settings

class Idle(Component):
    async def start(self):
        self.log.info("working with %s", dict(self.settings))

class Deaf(Component):
    async def start(self): ...
    async def stop(self):
        await asyncio.sleep(600)

class Dies(Component):
    async def start(self):
        self.spawn(self.die())
    async def die(self):
        os._exit(3)

class Breaks(Component):
    async def start(self):
        self.spawn(self.work())
    async def work(self):
        raise ValueError("out of paper")

class Moody(Component):
    async def start(self): ...
    async def check(self):
        if os.path.exists("hang"):
            await asyncio.sleep(600)
        if os.path.exists("sad"):
            raise OSError("the database is away")

class Odd(Component):
    def __init__(self, settings: Settings, colour: int) -> None: ...
    async def start(self): ...

class Fails(Component):
    def __init__(self, settings: Settings) -> None:
        settings.integer("size")
    async def start(self): ...
"""


class Rig:
    """One data folder; its keeper may come and go, its rows are the newest that were told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.content = folder / "data", folder / "content"
        self.socket = self.data / "keeper.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self.client = KeeperClient(self.socket)
        self.rows: dict[str, HostRow] = {}
        self.history: list[tuple[str, str, int | None]] = []
        self._moved = asyncio.Condition()
        self._following: asyncio.Task[None] | None = None
        self.content.mkdir()
        (self.content / "tdie_test_parts.py").write_text(MODULE)

    async def up(self, python: str = sys.executable) -> None:
        command = [python, "-I", "-m", "agent.keeper", "--socket", str(self.socket), "--data", str(self.data)]
        self.data.mkdir(exist_ok=True)
        with (self.data / "keeper.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)  # noqa: ASYNC220
        await self.until(self.answers)
        self.listen()

    async def answers(self) -> bool:
        try:
            await self.client.about()
        except Waiting:
            return False
        return True

    def listen(self) -> None:
        self._following = asyncio.create_task(self._follow(), name="rows")

    async def _follow(self) -> None:
        try:
            async for row in self.client.events():
                self.rows[row.replica] = row
                self.history.append((row.replica, row.state, row.pid))
                async with self._moved:
                    self._moved.notify_all()
        except Waiting:
            return

    async def deafen(self) -> None:
        """What an agent's death looks like to the keeper."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self.client.aclose()
        self.rows = {}

    async def kill_keeper(self) -> None:
        assert self.process is not None
        self.process.kill()
        await asyncio.to_thread(self.process.wait)
        await self.deafen()

    async def row(self, replica: str, fits: Callable[[HostRow], bool], within: float = 20.0) -> HostRow:
        try:
            async with asyncio.timeout(within), self._moved:
                await self._moved.wait_for(lambda: replica in self.rows and fits(self.rows[replica]))
        except TimeoutError:
            raise AssertionError(f"{self.rows.get(replica)}\n{(self.data / 'keeper.log').read_text()}") from None
        return self.rows[replica]

    async def started(self, order: HostOrder) -> HostRow:
        await self.client.start(order)
        return await self.row(order.replica, lambda row: row.healthy and row.spec_hash == order.spec_hash)

    async def until(self, true: Callable[[], Any], within: float = 20.0) -> None:
        async with asyncio.timeout(within):
            while not (await found if asyncio.iscoroutine(found := true()) else found):
                await asyncio.sleep(0.01)

    def code(self, name: str = "Idle", **settings: Any) -> Code:
        return Code("parts", "1.0.0", "0" * 64, str(self.content), f"tdie_test_parts:{name}", settings)

    def order(self, replica: str = "a.0", name: str = "Idle", **more: Any) -> HostOrder:
        made = HostOrder(
            replica,
            replica.split(".")[0],
            "n",
            "spec-1",
            "python",
            self.code(name),
            log=str(self.folder / f"{replica}.log"),
        )
        return replace(made, **more)

    def program(self, replica: str, *command: str, **more: Any) -> HostOrder:
        return self.order(replica, runtime="exec", command=command, **more)

    async def down(self) -> None:
        await self.deafen()
        if self.process is not None and self.process.poll() is None:
            await self.client.shutdown()
            await asyncio.to_thread(self.process.wait, 20)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    await made.up()
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is not None:
            await made.up()  # hosts of a killed keeper are found and stopped by the next
        pids = [row.pid for row in await made.client.rows() if row.pid]
        await made.down()
        assert not [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.fixture
def is_alive() -> Callable[[int], bool]:
    return alive


@pytest.fixture
def kill() -> Callable[[int | None], None]:
    def send(pid: int | None) -> None:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    return send
