"""The real program: killed with -9 and started again, its hosts keep their process ids and count no restart."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from agent.__main__ import main
from agent.client import NodeClient
from agent.clock import SystemClock
from agent.errors import Refused, TdieError
from agent.keeper.client import KeeperClient
from agent.packages.digest import content_digest as package_digest
from agent.packages.pack import pack
from agent.wire import (
    Assignment,
    Claim,
    PackageOrder,
    PackageRef,
    ReplicaOrder,
    ReplicaSpec,
    Report,
    content_digest,
)
from tests.agent.keeper.releases import release
from tests.agent.programs import Program, alive, assign, ended, report_when, soon
from tests.disk_trouble import Filler, small_disk

MANIFEST = {"name": "sleeper", "version": "1.0.0", "runtime": "exec", "command": ["sleep", "{settings.seconds}"]}
CONTENT = {"manifest.json": (json.dumps(MANIFEST).encode(), False)}
PACKAGE = PackageRef(name="sleeper", version="1.0.0", digest=package_digest(CONTENT))


@pytest.fixture
async def source() -> AsyncIterator[str]:
    body = pack(CONTENT)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/sleeper"


def assignment(program: Program, source: str, count: int) -> Assignment:
    spec = ReplicaSpec(package=PACKAGE, settings={"seconds": 600})
    orders = tuple(
        ReplicaOrder(replica=f"sleeper.{n}", instance="sleeper", spec=spec, spec_hash=spec.hash()) for n in range(count)
    )
    packages = (PackageOrder(package=PACKAGE, sources=(source,)),)
    return Assignment(
        cluster="default", node=f"n{program.port}", epoch=1, generation=1, packages=packages, replicas=orders,
        digest=content_digest(packages, orders),
    )  # fmt: skip


def all_well(count: int) -> Callable[[Report], bool]:
    return lambda report: report.settled and sum(row.healthy for row in report.replicas) == count


def processes(report: Report) -> dict[str, tuple[int | None, int]]:
    return {row.replica: (row.pid, row.restarts) for row in report.replicas}


async def test_on_a_full_disk_everything_keeps_running_and_comes_back(
    program: Program, client: NodeClient, source: str
) -> None:
    program.data.mkdir()
    with small_disk(program.data, "4m"), ended(program):
        first = program.start()
        await report_when(client, program.api, lambda report: True)
        await client.claim(program.api, Claim(epoch=1))
        await assign(client, program.api, assignment(program, source, 2))
        before = processes(await report_when(client, program.api, all_well(2)))
        disk = Filler(program.data)
        disk.fill()

        first.send_signal(signal.SIGKILL)
        first.wait()
        program.start()
        again = await report_when(client, program.api, all_well(2))
        assert processes(again) == before

        with pytest.raises(TdieError, match="LEDGER_WRITE"):
            await client.claim(program.api, Claim(epoch=2))
        victim = again.replicas[0].pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)  # it must come back without a byte of room
        healed = processes(
            await report_when(client, program.api, lambda r: all_well(2)(r) and r.replicas[0].pid != victim)
        )
        assert (healed["sleeper.0"][1], healed["sleeper.1"]) == (1, before["sleeper.1"])

        disk.empty()
        await client.claim(program.api, Claim(epoch=2))
        assert processes(await report_when(client, program.api, all_well(2))) == healed


async def test_what_lay_before_an_agent_that_stood_still_is_not_obeyed(
    program: Program, client: NodeClient, source: str
) -> None:
    agent, clock = program.start(), SystemClock()
    await report_when(client, program.api, lambda report: True)
    await client.claim(program.api, Claim(epoch=1))
    expiry = await soon(client, program.api, 0.5)
    agent.send_signal(signal.SIGSTOP)
    sending = asyncio.create_task(client.assign(program.api, assignment(program, source, 1), expiry), name="send")
    while clock.now() < expiry.at:
        await asyncio.sleep(0.05)
    agent.send_signal(signal.SIGCONT)
    with pytest.raises(Refused, match=r"generation 1 came \d.\d s too late"):
        await sending
    assert (await client.report(program.api, 0, 0.0, "")).accepted is None
    await assign(client, program.api, assignment(program, source, 1))
    await report_when(client, program.api, all_well(1))


async def test_killed_agents_find_their_hosts_as_they_were(program: Program, client: NodeClient, source: str) -> None:
    first = program.start()
    await report_when(client, program.api, lambda report: True)
    await client.claim(program.api, Claim(epoch=1))
    await assign(client, program.api, assignment(program, source, 4))
    before = await report_when(client, program.api, all_well(4))
    assert all(pid and restarts == 0 for pid, restarts in processes(before).values())

    first.send_signal(signal.SIGKILL)
    first.wait()
    assert all(alive(pid) for pid, _ in processes(before).values())
    second = program.start()
    again = await report_when(client, program.api, all_well(4))
    assert processes(again) == processes(before)
    assert (again.accepted, again.epoch) == (before.accepted, 1)
    assert again.agent != before.agent
    assert re.search(r'"ADOPTED", "hosts": "4/4"|hosts=4/4', (program.data.parent / "agent.log").read_text())

    victim = again.replicas[0]
    await client.kill(program.api, "sleeper", victim.replica)  # stopped by hand: healed
    healed = await report_when(client, program.api, lambda r: all_well(4)(r) and r.replicas[0].pid != victim.pid)
    assert {row.pid for row in healed.replicas[1:]} == {row.pid for row in again.replicas[1:]}

    async with httpx.AsyncClient(trust_env=False) as consul, asyncio.timeout(10):  # the catalog follows a moment later
        while True:
            checks = (await consul.get(f"http://{program.consul}/v1/health/service/sleeper")).json()
            if sum(all(c["Status"] == "passing" for c in entry["Checks"]) for entry in checks) >= 4:
                break
            await asyncio.sleep(0.02)

    second.send_signal(signal.SIGTERM)  # the agent only
    assert second.wait(20) == 0
    assert all(alive(row.pid) for row in healed.replicas)
    assert "its hosts keep running" in (program.data.parent / "agent.log").read_text()

    third = program.start("--stop-hosts")
    await report_when(client, program.api, all_well(4))
    third.send_signal(signal.SIGTERM)
    assert third.wait(30) == 0
    assert not any(alive(row.pid) for row in healed.replicas)


async def test_an_agent_of_another_release_brings_its_keeper_along(
    program: Program, client: NodeClient, source: str, tmp_path: Path
) -> None:
    log = program.data.parent / "agent.log"
    agent = program.start()
    await report_when(client, program.api, lambda report: True)
    await client.claim(program.api, Claim(epoch=1))
    await assign(client, program.api, assignment(program, source, 4))
    before = processes(await report_when(client, program.api, all_well(4)))
    pid, code = await keeper_of(program)
    assert "KEEPER_UPGRADED" not in log.read_text()

    next_release = (release(tmp_path / "next"), "-I")
    for count, python in enumerate((next_release, next_release, (sys.executable,)), 1):  # up, the same, down again
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(20) == 0
        agent = program.start(python=python)
        here = code if count == 3 else await identity(python)
        async with asyncio.timeout(40):
            while await keeper_of(program) != (pid, here):
                await asyncio.sleep(0.02)
        assert processes(await report_when(client, program.api, all_well(4))) == before
    said = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(one["before"], one["after"], one["hosts"]) for one in said if one.get("code") == "KEEPER_UPGRADED"] == [
        (code, await identity(next_release), 4), (await identity(next_release), code, 4),
    ]  # fmt: skip
    steps = [one.get("code") or one["event"] for one in said]  # it is upgraded before it is asked for anything
    found = [step for step in steps if step in ("registered", "KEEPER_UPGRADED")]
    assert found == ["registered", "KEEPER_UPGRADED", "registered", "registered", "KEEPER_UPGRADED", "registered"]
    assert "KEEPER_GONE" not in log.read_text()

    broken = release(tmp_path / "broken", keeper__supervisor=("class Supervisor(Lifecycle):", "class Supervisor("))
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(20) == 0
    program.start(python=(broken, "-I"))
    await report_when(
        client, program.api, lambda report: any(each.code == "KEEPER_OUTDATED" for each in report.problems)
    )
    assert processes(await report_when(client, program.api, all_well(4))) == before
    assert await keeper_of(program) == (pid, code)


async def keeper_of(program: Program) -> tuple[int, str]:
    """Its pid and its code."""
    async with KeeperClient(program.data / "keeper.sock") as keeper:
        about = await keeper.about()
    return about["pid"], about["code"]


async def identity(python: tuple[str, ...]) -> str:
    words = (*python, "-c", "from agent.keeper.identity import code_identity; print(code_identity())")
    asked = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    return (await asked.communicate())[0].decode().strip()


def test_wrong_options_and_settings_are_one_line_and_never_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TDIE_AGENT_DATA", str(tmp_path / "data"))

    def run(*flags: str) -> tuple[int, str]:
        try:
            status = main(flags)
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, capsys.readouterr().err

    status, text = run("--no-such-thing")
    assert status == 64
    assert "usage: tdie-agent" in text
    assert run("--port", "many")[0] == 64
    assert run("--label", "nonsense")[0] == 64
    status, text = run("--bind", "0.0.0.0")
    assert status == 1
    assert text.startswith("tdie-agent: OPEN_BIND")
    (tmp_path / "agent.yaml").write_text("nodes: a\nport: x\n")
    status, text = run("--config", str(tmp_path / "agent.yaml"))
    assert status == 1
    assert "port: Input should be a valid integer" in text
    assert "nodes: Extra inputs are not permitted" in text
    assert run("--config", str(tmp_path / "none.yaml"))[0] == 1
