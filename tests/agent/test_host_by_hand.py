"""A host that people set up over HTTP, as the seed tells it: start, port, publisher, component, services, and then a file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent import components
from agent.correlation import HEADER
from agent.packages.digest import read_folder
from agent.packages.pack import pack
from tests.agent.programs import Program
from tests.wheels import wheel

BASE = "/api/componentHost"
NEEDS = """
import tdielib
from agent.sdk import Component

class Needs(Component):
    async def start(self):
        assert tdielib.VERSION == 1
"""
OWN = """
from agent.sdk import Component, Settings

class Picky(Component):
    def __init__(self, settings: Settings):
        settings.integer("size")
    async def start(self): ...
"""
ZIP = {"Content-Type": "application/zip"}


@pytest.fixture
async def node(program: Program) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=program.api, trust_env=False, timeout=20) as made:
        program.start()
        await program.ready(made)
        for name in ("file-watcher", "basic-publisher"):
            body = pack(read_folder(components.folder(name)))
            assert (await made.post("/api/node/packages", content=body, headers=ZIP)).status_code == 201
        yield made


def states(told: dict[str, Any]) -> tuple[str | None, ...]:
    return (told["state"], *(part["state"] for part in told["packages"]))


async def test_file_watcher_as_the_seed_tells_it(program: Program, node: httpx.AsyncClient, tmp_path: Path) -> None:
    inbox, out = tmp_path / "in", tmp_path / "out.jsonl"
    inbox.mkdir()
    started = await node.put(
        "/api/node/processes/FileWatcher/start", json={"autoStart": False}, headers={HEADER: "seed-0"}
    )
    begun = started.json()
    async with httpx.AsyncClient(base_url=begun["url"], trust_env=False, timeout=20) as host:

        async def call(path: str, **body: Any) -> dict[str, Any]:
            answer = await host.put(f"{BASE}/services{path}", json=body or None, headers={HEADER: "seed-1"})
            assert answer.status_code == 200, answer.text
            assert answer.headers[HEADER] == "seed-1"
            found: dict[str, Any] = answer.json()
            return found

        told = (await host.get(f"{BASE}/configuration")).json()
        assert (told["pid"], told["port"], states(told)) == (
            begun["pid"],
            begun["port"],
            ("AwaitingConfiguration", None),
        )
        early = await host.put(f"{BASE}/services/start")
        assert (early.status_code, early.json()["code"]) == (409, "WRONG_STATE")
        told = await call("/messagePublisher/BasicPublisher/init", settings={"file": str(out)})
        assert states(told) == ("AwaitingConfiguration", None, "Initialized")
        settings = {"inputPath": str(inbox), "filter": "*.xml"}
        told = await call("/component/FileWatcher/init", packageName="FileWatcher", settings=settings)
        assert states(told) == ("Configured", "Initialized", "Initialized")
        assert states(await call("/start")) == ("Started", "Started", "Started")

        (inbox / "not.txt").write_text("x")
        (inbox / "one.xml").write_text("<one/>")
        message = await _line(out)
        assert (message["type"], message["content"]["fileName"]) == ("FileWatcherMessage", "one.xml")
        assert (message["source"], message["correlationId"]) == (begun["settingsId"], "seed-1")
        assert '"correlation_id": "seed-0"' in (program.data.parent / "agent.log").read_text()
        log = (await node.get(f"/api/node/processes/{begun['settingsId']}/logs")).text
        assert {json.loads(line).get("correlationId") for line in log.splitlines()} <= {"seed-0", "seed-1"}
        assert "seed-1" in log

        # Its process is killed: it comes back as it was set up.
        (row,) = (await node.get(f"/api/node/processes/file-watcher/{begun['settingsId']}")).json()
        assert (row["owner"], row["state"], row["healthy"]) == ("manual", "Started", True)
        os.kill(begun["pid"], signal.SIGKILL)
        async with asyncio.timeout(20):
            while True:
                (row,) = (await node.get(f"/api/node/processes/file-watcher/{begun['settingsId']}")).json()
                if row["healthy"] and row["pid"] != begun["pid"]:
                    break
                await asyncio.sleep(0.03)
        assert states((await host.get(f"{BASE}/configuration")).json()) == ("Started", "Started", "Started")


async def test_what_is_wrong_stays_readable_until_it_is_right(
    program: Program, node: httpx.AsyncClient, tmp_path: Path
) -> None:
    begun = (await node.put("/api/node/processes/file-watcher/start", json={"autoStart": False})).json()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tdie_own.py").write_text(OWN)
    async with httpx.AsyncClient(base_url=begun["url"], trust_env=False, timeout=20) as host:
        path = f"{BASE}/services/component/own/init"
        for document, code in (
            ({"assemblyPath": str(tmp_path / "own"), "fullyQualifiedClassName": "tdie_own.Nobody"}, "CLASS_MISSING"),
            ({"assemblyPath": str(tmp_path / "nowhere"), "fullyQualifiedClassName": "a.B"}, "CONTENT_MISSING"),
            ({"assemblyPath": "/tmp"}, "INVALID"),
            ({"settings": {}}, "PKG_UNKNOWN"),
            ({"settings": []}, "INVALID"),
            ({"assemblyPath": str(tmp_path / "own"), "fullyQualifiedClassName": "tdie_own.Picky"}, "SETTING_MISSING"),
        ):
            refused = await host.put(path, json=document)
            assert (refused.status_code // 100, refused.json()["code"]) == (4, code), refused.text
        told = (await host.get(f"{BASE}/configuration")).json()
        assert (told["state"], told["error"]["code"], told["pid"]) == ("Errored", "SETTING_MISSING", begun["pid"])
        async with asyncio.timeout(20):
            while "SETTING_MISSING" not in (await node.get("/api/node/processes")).json()[0]["lastError"]:
                await asyncio.sleep(0.03)
        good = {**document, "settings": {"size": 3}}
        assert states((await host.put(path, json=good)).json()) == ("Configured", "Initialized")
        started = await host.put(f"{BASE}/services/component/own/start")
        assert states(started.json()) == ("Started", "Started")
        async with asyncio.timeout(20):  # the node tells what runs now
            while (await node.get(f"/api/node/processes/own/{begun['settingsId']}")).status_code != 200:
                await asyncio.sleep(0.03)

        # Its agent is away: the host says so, and goes on.
        program.processes[0].kill()
        await asyncio.to_thread(program.processes[0].wait)
        away = await host.get(f"{BASE}/packages/configuration")
        assert (away.status_code, away.json()["code"]) == (503, "AGENT_AWAY")
        assert (await host.get("/readyz")).status_code == 200


async def test_packages_with_dependencies_are_set_up_in_a_process_of_their_own(node: httpx.AsyncClient) -> None:
    file, data = wheel("tdielib", "1.0", {"tdielib.py": "VERSION = 1"})
    manifest = {
        "name": "needs", "version": "1.0.0", "componentType": "tdie_needs:Needs", "contentRoot": ".",
        "dependencies": ["tdielib==1.0"],
    }  # fmt: skip
    content = {
        "manifest.json": (json.dumps(manifest).encode(), False),
        "tdie_needs.py": (NEEDS.encode(), False),
        f"dependencies/{file}": (data, False),
    }
    made = await node.post("/api/node/packages", content=pack(content), headers=ZIP, timeout=120)
    assert made.status_code == 201, made.text
    usual = (await node.put("/api/node/processes/file-watcher/start", json={"autoStart": False})).json()
    own = (await node.put("/api/node/processes/needs/start", json={"autoStart": False})).json()
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        path = f"{BASE}/services/component/needs/init"
        refused = await http.put(usual["url"] + path, json={"settings": {}})
        assert (refused.status_code, refused.json()["code"]) == (409, "OTHER_ENVIRONMENT")
        assert (await http.put(own["url"] + path, json={"settings": {"a": 1}})).json()["state"] == "Configured"
        listed = (await http.get(f"{own['url']}{BASE}/packages/configuration")).json()  # by borrowed libraries
        assert {each["packageName"] for each in listed} == {"file-watcher", "basic-publisher", "needs"}
        again = await http.post(f"{own['url']}{BASE}/packages", content=pack(content), headers=ZIP)
        assert (again.status_code, again.json()["code"]) == (409, "PKG_EXISTS")
        assert states((await http.put(f"{own['url']}{BASE}/services/start")).json()) == ("Started", "Started")
        assert "tdie_host_healthy 1" in (await http.get(f"{own['url']}/metrics")).text
        assert "services/start" in (await http.get(f"{own['url']}/docs")).text


async def _line(file: Path) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while not (text := await asyncio.to_thread(lambda: file.read_text() if file.exists() else "")):
            await asyncio.sleep(0.03)
    found: dict[str, Any] = json.loads(text.splitlines()[0])
    return found
