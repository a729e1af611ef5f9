"""Hosts that people start at a node: told apart from what Git owns, kept over restarts, ended by hand or by prune: all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from agent.client import NodeClient
from agent.packages.pack import pack
from agent.wire import Assignment, Claim, NodePolicy, Report, content_digest
from tests.agent.programs import Program, alive, assign, report_when

SLEEPER = pack(
    {"manifest.json": (json.dumps({
        "name": "sleeper", "version": "1.0.0", "runtime": "exec",
        "command": ["sleep", "{settings.seconds}"], "defaultConfiguration": {"seconds": 600},
    }).encode(), False)}
)  # fmt: skip
DEEP = '{"a":' * 400 + "1" + "}" * 400
BAD = (
    "no JSON",
    f'{{"settings": {DEEP}}}',
    f'{{"settings": {DEEP * 1000}}}',
    '{"resources": {"memory": -5}}',
    '{"resources": {"cpu": 0}}',
    '{"env": {"A=B": "x"}}',
    '{"env": {"A": "\\u0000"}}',
    '{"version": 1}',
    '{"replicas": 3}',
)
ZIP = {"Content-Type": "application/zip"}


@pytest.fixture
async def http(program: Program) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=program.api, trust_env=False, timeout=20) as made:
        yield made


def assignment(program: Program, generation: int = 1, *, prune_all: bool = False) -> Assignment:
    policy = NodePolicy(stop_manual=prune_all)
    return Assignment(
        cluster="default", node=f"n{program.port}", epoch=1, generation=generation, policy=policy,
        digest=content_digest((), (), policy),
    )  # fmt: skip


def of_hand(report: Report) -> dict[str, tuple[str, int | None]]:
    return {row.replica: (row.state.value, row.pid) for row in report.by_hand}


async def started(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await http.put("/api/node/processes/Sleeper/start", json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == f"/api/node/processes/sleeper/{found['settingsId']}"
    return found


async def test_from_start_to_prune(program: Program, client: NodeClient, http: httpx.AsyncClient) -> None:
    first = program.start()
    await program.ready(http)
    assert (await http.post("/api/node/packages", content=SLEEPER, headers=ZIP)).status_code == 201
    for body in BAD:
        refused = await http.put("/api/node/processes/sleeper/start", content=body)
        assert refused.status_code in (400, 422), f"{body[:80]}: {refused.text}"
        assert refused.headers["Content-Type"] == "application/problem+json"
    one, two = await asyncio.gather(started(http), started(http, settings={"seconds": 601}))
    assert one["settingsId"] != two["settingsId"]
    assert alive(one["pid"])
    told = await report_when(client, program.api, lambda report: len(of_hand(report)) == 2)
    assert of_hand(told)[one["settingsId"]][1] == one["pid"]
    assert not told.replicas
    listed = (await http.get("/api/node/processes/sleeper")).json()
    assert {(row["owner"], row["pid"]) for row in listed} == {("manual", one["pid"]), ("manual", two["pid"])}

    # Another agent finds them again, and an assignment that does not name them leaves them alone.
    first.kill()
    first.wait()
    program.start()
    await program.ready(http)
    await client.claim(program.api, Claim(epoch=1))
    await assign(client, program.api, assignment(program))
    again = await report_when(client, program.api, lambda report: report.settled and report.accepted is not None)
    assert of_hand(again) == {
        one["settingsId"]: ("Started", one["pid"]),
        two["settingsId"]: ("Started", two["pid"]),
    }
    three = await started(http)
    assert three["settingsId"] not in of_hand(again)

    # One that cannot run waits for its next restart, and is gone when somebody ends it.
    four = await started(http, settings={"seconds": "nonsense"})
    name = four["settingsId"]
    await report_when(client, program.api, lambda report: of_hand(report).get(name) == ("Backoff", None))
    assert (await http.put(f"/api/node/processes/sleeper/{name}/kill")).status_code == 202
    await report_when(client, program.api, lambda report: name not in of_hand(report))

    # By hand they end for good; a crash is restarted by the usual policy before.
    killed = await http.put(f"/api/node/processes/sleeper/{three['pid']}/kill")
    assert (killed.status_code, killed.json()) == (202, {"replicas": [three["settingsId"]]})
    await report_when(client, program.api, lambda report: len(of_hand(report)) == 2)
    assert not alive(three["pid"])

    # A cluster that keeps nothing but what Git owns.
    await assign(client, program.api, assignment(program, 2, prune_all=True))
    await report_when(client, program.api, lambda report: not report.by_hand and report.settled)
    assert not alive(one["pid"])
    assert not alive(two["pid"])
    await report_when(client, program.api, lambda report: not report.packages)
    refused = await http.put("/api/node/processes/sleeper/start")
    assert (refused.status_code, refused.json()["code"]) == (409, "PRUNES_ALL")
