"""Hosts in an environment of their own: two versions of a dependency on one machine at once, each host seeing its own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.consul.process import free_ports
from agent.keeper.protocol import Code
from agent.packages.environments import Environments
from agent.packages.protocol import Installed
from agent.wire import PackageRef
from tests.wheels import wheel

Rig = Any

MODULE = """
import sys
from tdielib import VERSION
from agent.sdk import Component

class Part(Component):
    async def start(self):
        foreign = [name for name in ("httpx", "structlog", "pydantic", "yaml", "starlette") if self.seen(name)]
        self.log.info("tdielib=%s agent-libraries=%s limit=%s", VERSION, foreign, self.settings.integer("limit", 0))

    def seen(self, name):
        try:
            __import__(name)
        except ImportError:
            return False
        return True
"""


def packaged(folder: Path, version: str) -> Installed:
    """A package on disk that brings this version of its only dependency."""
    (folder / "dependencies").mkdir(parents=True)
    (folder / "part.py").write_text(MODULE)
    file, data = wheel("tdielib", version, {"tdielib.py": f"VERSION = {version!r}"})
    (folder / "dependencies" / file).write_bytes(data)
    ref = PackageRef(name="part", version=version, digest=version.replace(".", "") * 16)
    return Installed(ref, str(folder), dependencies=(f"tdielib=={version}",))


def order(rig: Rig, replica: str, installed: Installed, python: str, **more: Any) -> Any:
    ref = installed.package
    code = Code(ref.name, ref.version, ref.digest, installed.content_root, "part:Part")
    return replace(rig.order(replica), component=code, python=python, **more)


@pytest.fixture
async def two(rig: Rig) -> list[tuple[Installed, str]]:
    environments = Environments(rig.folder / "environments")
    environments.open()
    installed = [packaged(rig.folder / f"v{n}", version) for n, version in enumerate(("1.0.0", "2.0.0"))]
    return [(item, await asyncio.to_thread(environments.make, [item])) for item in installed]


async def test_two_versions_side_by_side_each_with_its_own_dependency(
    rig: Rig, two: list[tuple[Installed, str]]
) -> None:
    rows = []
    for number, (installed, python) in enumerate(two):
        rows.append(await rig.started(order(rig, f"p{number}.0", installed, python)))
    for number, version in enumerate(("1.0.0", "2.0.0")):
        text = (rig.folder / f"p{number}.0.log").read_text()
        assert f"tdielib={version} agent-libraries=[] limit=0" in text
    assert all(row.restarts == 0 and row.host_state == "Started" for row in rows)
    for row in rows:
        await rig.client.stop(row.replica)
        await rig.row(row.replica, lambda found: found.state == "Stopped" and found.pid is None)


async def test_a_cold_host_is_looked_after_like_any_other(
    rig: Rig, two: list[tuple[Installed, str]], kill: Any
) -> None:
    installed, python = two[0]
    (port,) = free_ports(1)
    cold = order(rig, "p.0", installed, python, port=port)
    before = await rig.started(cold)
    changed = replace(cold, spec_hash="spec-2", component=replace(cold.component, settings={"limit": 7}))
    await rig.client.reconfigure(changed)
    again = await rig.row("p.0", lambda row: row.healthy and row.spec_hash == "spec-2")
    assert again.pid == before.pid
    assert "limit=7" in (rig.folder / "p.0.log").read_text()
    async with httpx.AsyncClient(trust_env=False) as client:  # its API borrows what it needs from the agent
        answer = await client.get(f"http://127.0.0.1:{port}/api/componentHost/configuration")
    assert answer.json()["state"] == "Started"
    await rig.kill_keeper()
    await rig.up()
    adopted = await rig.row("p.0", lambda row: row.healthy)
    assert (adopted.pid, adopted.restarts) == (before.pid, 0)
    kill(adopted.pid)
    after = await rig.row("p.0", lambda row: row.healthy and row.pid != before.pid)
    assert after.order.python == python


async def test_an_interpreter_that_is_gone_is_said(rig: Rig, two: list[tuple[Installed, str]]) -> None:
    installed, _ = two[0]
    await rig.client.start(order(rig, "p.0", installed, "/nowhere/bin/python", restart_attempts=0))
    row = await rig.row("p.0", lambda found: found.state == "Failed")
    assert "START_FAILED /nowhere/bin/python" in row.last_error
