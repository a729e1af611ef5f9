"""The process store: who is recorded, what does not fit together, and that nobody is signalled who was not recorded."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.keeper import linux
from agent.keeper.protocol import Code, HostOrder, HostRow
from agent.packages.pack import pack
from agent.process_store import MachineProcesses
from agent.processes import Findings, Identity, Look, ProcessRecord, Seen, Zombie, compare, lasting, records
from tests.agent.programs import Program, alive, programs
from tests.conftest import ConsulServer

BOOT = "boot-1"
FORKS = "import os, time\nos.fork() or os._exit(0)\ntime.sleep(600)"


def row(replica: str = "web.0", pid: int | None = 10, start: int | None = 100, state: str = "Started") -> HostRow:
    code = Code("web", "1.0.0", "d", "/x")
    return HostRow(
        replica, "s", state, True, 0.0, HostOrder(replica, "web", "n", "s", "exec", code), "then", pid, start
    )


def seen(pid: int, start: int, replica: str = "web.0", launch: str = "l1") -> Seen:
    return Seen(Identity(pid, start, BOOT), replica, launch)


MINE, HELPER, DOUBLE = seen(10, 100), seen(11, 101), seen(12, 90, launch="l0")
FIRST = Identity(10, 100, BOOT)


@pytest.mark.parametrize(
    ("rows", "look", "recorded", "found"),
    [
        ((row(),), Look((MINE, HELPER), alive=frozenset({FIRST})), True, Findings()),
        ((), Look(), True, "gone"),
        ((), Look(alive=frozenset({Identity(10, 999, BOOT)})), True, "gone"),  # its pid is another's now
        ((), Look((MINE,), alive=frozenset({FIRST})), True, Findings(orphans=(MINE,))),
        ((row(),), Look((MINE, DOUBLE), alive=frozenset({FIRST})), True, Findings(orphans=(DOUBLE,))),
        ((row(pid=None, start=None, state="Starting"),), Look((MINE,)), False, Findings()),
        ((row(state="Stopping"),), Look((HELPER,), alive=frozenset({FIRST})), False, Findings()),
        ((row(),), Look((HELPER,), alive=frozenset({FIRST})), False, Findings()),  # it wrote over its marker
        ((row(),), Look(), False, Findings(missing=("web.0",))),
        ((row(),), Look((MINE,), (Zombie(13, 10), Zombie(14, 1)), frozenset({FIRST})), False,
         Findings(zombies=((Zombie(13, 10), "web.0"),))),
    ],
)  # fmt: skip
def test_what_does_not_fit_together(rows: tuple[HostRow, ...], look: Look, recorded: bool, found: Any) -> None:
    known = records([row()], BOOT) if recorded else {}
    if found == "gone":
        found = Findings(gone=tuple(known.values()))
    assert compare(known, {each.replica: each for each in rows}, look, BOOT) == found


def test_only_what_is_found_twice_is_said() -> None:
    now = Findings(orphans=(MINE, DOUBLE), missing=("a",))
    assert lasting(now, Findings()) == Findings()
    assert lasting(now, Findings(orphans=(DOUBLE,), missing=("b",))) == Findings(orphans=(DOUBLE,))


def test_another_boot_is_another_process() -> None:
    known = records([row()], "boot-0")
    assert compare(known, {}, Look((MINE,)), BOOT).gone == tuple(known.values())


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def record_of(identity: Identity, package: str = "sleeper", replica: str = "ghost.0") -> ProcessRecord:
    return ProcessRecord(identity, replica, package, "1.0.0", "manual", "Started", 5000, "then")


async def test_no_pid_is_ever_taken_for_another_process(tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    stat = linux.stat(bystander.pid)
    assert stat is not None
    it = Identity(bystander.pid, stat.start_time, linux.boot_id())
    others = (Identity(it.pid, it.start_time - 1, it.boot_id), Identity(it.pid, it.start_time, "another boot"))
    store = MachineProcesses(tmp_path / "p.sqlite", "k")
    for other in others:
        assert not await store.kill(other)
    assert (await store.look((it, *others))).alive == {it}
    assert alive(bystander.pid)
    await store.record([record_of(it), record_of(others[0])], [])
    await store.record([], [others[0]])
    again = MachineProcesses(tmp_path / "p.sqlite", "k")
    assert await again.recorded() == (record_of(it),)
    (tmp_path / "p.sqlite").write_bytes(b"no database, but long enough to look at" * 100)
    assert await again.recorded() == ()
    assert (tmp_path / "p.sqlite.bad").exists()
    assert await again.kill(it)
    assert await asyncio.to_thread(bystander.wait) == -signal.SIGKILL


@pytest.fixture
def program(
    tmp_path: Path, consul_server: ConsulServer, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Program]:
    monkeypatch.setenv("TDIE_AGENT_LOOK_EVERY", "0.1")
    with programs(tmp_path, consul_server.http, free_port()) as made:
        yield made


@pytest.fixture
async def http(program: Program) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=program.api, trust_env=False, timeout=20) as made:
        yield made


async def stats(http: httpx.AsyncClient, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            found: dict[str, Any] = (await http.get("/api/node/stats")).json()["processes"]
            if true(found):
                return found
            await asyncio.sleep(0.05)


async def problems(http: httpx.AsyncClient) -> dict[str, str]:
    return {each["code"]: each["detail"] for each in (await http.get("/api/node/report")).json()["problems"]}


async def test_ghosts_orphans_and_zombies_are_found_and_told(program: Program, http: httpx.AsyncClient) -> None:
    agent = program.start()
    await program.ready(http)
    body = pack({"manifest.json": (json.dumps({
        "name": "sleeper", "version": "1.0.0", "runtime": "exec", "command": [sys.executable, "-c", FORKS],
    }).encode(), False)})  # fmt: skip
    headers = {"Content-Type": "application/zip"}
    assert (await http.post("/api/node/packages", content=body, headers=headers)).status_code == 201
    begun = (await http.put("/api/node/processes/sleeper/start")).json()
    found = await stats(http, lambda found: found["recorded"] == 1 and len(found["zombies"]) == 1)
    assert found["zombies"][0]["replica"] == begun["settingsId"]
    assert str(found["zombies"][0]["pid"]) in (await problems(http))["ZOMBIE_PROCESS"]

    # One that nobody looks after: told, and left alone, because its marker alone proves nothing.
    env = {"TDIE_KEEPER": linux.keeper_id(program.data), "TDIE_REPLICA": "ghost.0", "TDIE_HOST": "unknown"}
    orphan = await asyncio.to_thread(subprocess.Popen, ["sleep", "600"], env=env)
    try:
        found = await stats(http, lambda found: bool(found["orphans"]))
        assert found["orphans"] == [{"pid": orphan.pid, "replica": "ghost.0", "recorded": False}]
        assert f"pid {orphan.pid} of ghost.0" in (await problems(http))["ORPHAN_PROCESS"]
        refused = await http.put(f"/api/node/processes/sleeper/{orphan.pid}/kill")
        assert (refused.status_code, refused.json()["code"]) == (409, "NOT_RECORDED")
        assert alive(orphan.pid)

        # The record outlives the agent: what ended meanwhile is cleared, and a recorded orphan may be ended by people.
        os.kill(agent.pid, signal.SIGKILL)
        await asyncio.to_thread(agent.wait)
        stat = linux.stat(orphan.pid)
        assert stat is not None
        store = MachineProcesses(program.data / "processes.sqlite", env["TDIE_KEEPER"])
        (kept,) = await store.recorded()
        assert (kept.identity.pid, kept.replica, kept.owner) == (begun["pid"], begun["settingsId"], "manual")
        recorded = record_of(Identity(orphan.pid, stat.start_time, linux.boot_id()))
        await store.record([recorded, record_of(Identity(1, 1, linux.boot_id()))], [])  # init is no host of ours
        program.start()
        await program.ready(http)
        found = await stats(http, lambda found: found["recorded"] == 2 and bool(found["orphans"]))
        assert found["orphans"][0]["recorded"]
        assert (await http.put(f"/api/node/processes/other/{orphan.pid}/kill")).status_code == 404
        killed = await http.put(f"/api/node/processes/sleeper/{orphan.pid}/kill")
        assert (killed.status_code, killed.json()) == (202, {"replicas": ["ghost.0"]})
        assert await asyncio.to_thread(orphan.wait) == -signal.SIGKILL
    finally:
        orphan.kill()
        await asyncio.to_thread(orphan.wait)
    await stats(http, lambda found: found["recorded"] == 1 and not found["orphans"])
    assert "ORPHAN_PROCESS" not in await problems(http)
