"""The node API over HTTP, and its client: every error is a problem with a code, tokens and limits hold."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from agent.api.node_api import NodeFiles, node_app
from agent.api.packages import NodePackages
from agent.callers import Callers
from agent.client import NodeClient
from agent.clock import SystemClock
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.edges import Edges, NodeSettings
from agent.errors import Denied, Invalid, Missing, Refused, Waiting
from agent.expiry import Expiry
from agent.leases.peers import Ack, Ask, HttpPeers
from agent.ledger import MemoryLedger
from agent.node import Agent
from agent.packages.environments import Environments
from agent.packages.install import PackageInstaller
from agent.packages.manager import PackageManager
from agent.packages.pack import pack
from agent.packages.records import PackageRecords
from agent.packages.store import PackageStore
from agent.refusals import StaleLeader
from agent.sdk.message import correlation
from agent.serving import Server
from agent.tokens import TokenFile, check_bind
from agent.wire import Assignment, Claim, PackageOrder, PackageRef, ReplicaOrder, ReplicaSpec, content_digest
from reconciler.simulation.disk import SimInstaller, SimPorts, SimProber
from reconciler.simulation.keeper import SimKeeper
from reconciler.simulation.machine import Machine

TOKEN = "a-token-only-for-this-test"
NEVER = Expiry("b", 1e9)


def missing(digest: str) -> bytes:
    raise Missing(f"package {digest} is not installed here", code="PACKAGE_MISSING")


def node_packages(agent: Agent, folder: Path, client: httpx.AsyncClient) -> NodePackages:
    """A package manager with everything below a folder."""
    store, records = PackageStore(folder / "packages"), PackageRecords(folder / "packages.sqlite")
    environments = Environments(folder / "environments")
    store.open()
    environments.open()
    installer = PackageInstaller(store, environments, records, client, wall=time.time)
    return NodePackages(agent, store, records, installer, PackageManager(store, records, time.time))


class Running:
    """An agent with simulated hosts behind a real HTTP server."""

    def __init__(self, folder: Path) -> None:
        clock = SystemClock()
        edges = Edges(
            clock=clock, consul=MemoryConsul(Store(now=clock.now)), keeper=SimKeeper(Machine("a", clock)),
            ledger=MemoryLedger(), installer=SimInstaller(Machine("a", clock), set()), ports=SimPorts(),
            prober=SimProber(), uniform=lambda low, high: low, agent="x", boot_id="b",
        )  # fmt: skip
        self.agent = Agent(NodeSettings(cluster="c", node="a", api="http://a:1", logs=str(folder)), edges)
        self.http = httpx.AsyncClient(trust_env=False)
        self.packages = node_packages(self.agent, folder, self.http)
        app = node_app(self.agent, NodeFiles(folder, missing), self.packages, Callers(lambda: TOKEN))
        self.server = Server(app, grace=1)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    made = Running(tmp_path)
    tasks = [
        asyncio.create_task(made.agent.run(), name="agent"),
        asyncio.create_task(made.server.serve(sockets=[made.socket]), name="server"),
    ]
    while not (made.server.started and made.agent.ready):
        await asyncio.sleep(0.01)
    yield made
    made.server.should_exit = True
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await made.http.aclose()


@pytest.fixture
async def client() -> AsyncIterator[NodeClient]:
    made = NodeClient(token=lambda: TOKEN)
    yield made
    await made.close()


@pytest.fixture
async def raw(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=running.url, headers=headers, trust_env=False) as made:
        yield made


def assignment(replicas: int, generation: int = 1) -> Assignment:
    package = PackageRef(name="web", version="1.0.0", digest="d")
    spec = ReplicaSpec(package=package)
    orders = tuple(
        ReplicaOrder(replica=f"web.{n}", instance="web", spec=spec, spec_hash=spec.hash()) for n in range(replicas)
    )
    packages = (PackageOrder(package=package),)
    return Assignment(
        cluster="c", node="a", epoch=2, generation=generation, packages=packages, replicas=orders,
        digest=content_digest(packages, orders),
    )  # fmt: skip


async def test_the_whole_conversation(running: Running, client: NodeClient, tmp_path: Path) -> None:
    claimed = await client.claim(running.url, Claim(epoch=2))
    assert claimed.assignment is None
    accepted = await client.assign(running.url, assignment(3), NEVER)
    report = claimed.report
    while not (report.settled and report.accepted == accepted):
        report = await client.report(running.url, report.index, 5.0, report.agent)
    for late in (Expiry("b", 0.0), Expiry("the boot before", 1e9)):
        with pytest.raises(Refused, match="EXPIRED generation 2 came"):
            await client.assign(running.url, assignment(3, 2), late)
    with pytest.raises(StaleLeader) as caught:
        await client.claim(running.url, Claim(epoch=1))
    assert caught.value.epoch == 2
    (tmp_path / "web.0.log").write_text("one\ntwo\nthree\n")
    assert await client.logs(running.url, "web.0", 2) == "two\nthree\n"
    assert await client.logs(running.url, "web.1", 2) == ""
    await client.kill(running.url, "web", "web.0")
    seen: list[str] = []
    while "Stopping" not in seen or seen[-1] != "Started":
        report = await client.report(running.url, report.index, 5.0, report.agent)
        seen += [row.state.value for row in report.replicas]
    with pytest.raises(Missing):
        await client.kill(running.url, "other", "web.0")


async def test_who_may_not(running: Running) -> None:
    stranger = NodeClient(token=lambda: "wrong")
    with pytest.raises(Denied, match="UNAUTHORIZED"):
        await stranger.claim(running.url, Claim(epoch=9))
    with pytest.raises(Waiting):
        await stranger.claim("http://127.0.0.1:9", Claim(epoch=9))
    with pytest.raises(Waiting):
        await stranger.claim("http://nonsense host", Claim(epoch=9))
    await stranger.close()
    assert running.agent.book.whole().epoch == 0
    async with httpx.AsyncClient(base_url=running.url, trust_env=False) as anybody:
        assert (await anybody.get("/livez")).status_code == 200
        assert (await anybody.get("/readyz")).status_code == 200
        for path in ("/metrics", "/openapi.json", "/docs", "/api/node/report", "/api/node/stats", "/nothing"):
            answer = await anybody.get(path)
            assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHORIZED")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/nothing", None, 404, "NOT_FOUND"),
        ("POST", "/api/node/leader", "{}", 405, "METHOD_NOT_ALLOWED"),
        ("PUT", "/api/node/leader", "{", 422, "INVALID"),
        ("PUT", "/api/node/leader", "[" * 100_000, 400, "BAD_REQUEST"),
        ("PUT", "/api/node/leader", '{"epoch": ' * 100_000, 400, "BAD_REQUEST"),
        ("PUT", "/api/node/leader", '{"epoch": "x"}', 422, "INVALID"),
        ("PUT", "/api/node/leader", '{"epoch": 1, "new": 2}', 422, "VERSION_SKEW"),
        ("PUT", "/api/node/assignment", '{"wire": 2}', 422, "VERSION_SKEW"),
        ("GET", "/api/node/report?index=-1", None, 422, "INVALID"),
        ("GET", "/api/node/report?wait=soon", None, 422, "INVALID"),
        ("GET", "/api/node/processes/nobody/logs", None, 404, "NOT_FOUND"),
        ("PUT", "/api/node/processes/web/99999/kill", None, 404, "PROCESS_UNKNOWN"),
        ("GET", "/api/node/packages/" + "0" * 64, None, 404, "PACKAGE_MISSING"),
        ("GET", "/api/node/packages/..%2f..%2fetc", None, 404, "NOT_FOUND"),
    ],
)
async def test_problems(
    method: str, path: str, body: str | None, status: int, code: str, raw: httpx.AsyncClient
) -> None:
    answer = await raw.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("declared", [True, False])
async def test_large_bodies_are_refused_while_they_are_read(declared: bool, running: Running) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.socket.getsockname()[1])
    length = f"Content-Length: {1 << 40}" if declared else "Transfer-Encoding: chunked"
    head = f"PUT /api/node/assignment HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n{length}\r\n\r\n"
    writer.write(head.encode())
    block = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    for _ in range(0 if declared else 65):
        writer.write(block)
        await writer.drain()
    answer = await reader.readuntil(b"}")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"BODY_TOO_LARGE" in answer
    writer.close()


async def test_views(raw: httpx.AsyncClient, running: Running) -> None:
    await running.agent.claim(Claim(epoch=2))
    await running.agent.assign(assignment(2))
    while not running.agent.book.whole().settled:
        await asyncio.sleep(0.01)
    stats = (await raw.get("/api/node/stats")).json()
    assert stats["memory"]["total"] > stats["memory"]["available"] > 0
    assert [row["replica"] for row in (await raw.get("/api/node/processes")).json()] == ["web.0", "web.1"]
    assert 'tdie_agent_replicas{state="Started"} 2.0' in (await raw.get("/metrics")).text
    paths = json.loads((await raw.get("/openapi.json")).text)["paths"]
    shown = await raw.get("/docs")
    assert "<code>/api/node/processes/{package_name}/start</code>" in shown.text
    assert "<script" not in shown.text
    assert {"/api/node/leader", "/api/node/assignment", "/api/node/report"} <= paths.keys()


def test_nothing_is_open_to_the_network_without_a_token(tmp_path: Path) -> None:
    for address in ("127.0.0.1", "localhost", "::1"):
        check_bind(address, has_token=False)
    check_bind("0.0.0.0", has_token=True)
    for address in ("0.0.0.0", "::", "10.0.0.1", "machine"):
        with pytest.raises(Invalid, match="OPEN_BIND"):
            check_bind(address, has_token=False)
    file = tmp_path / "token"
    file.write_text("one\n")
    file.chmod(0o644)
    with pytest.raises(Invalid, match="can be read by others"):
        TokenFile(file)
    file.chmod(0o600)
    token = TokenFile(file)
    assert token() == "one"
    file.write_text("other-one\n")
    assert token() == "other-one"
    file.unlink()
    assert token() == "other-one"


def zipped(version: str, name: str = "hello") -> bytes:
    manifest = {"name": name, "version": version, "runtime": "exec", "command": ["sleep", "60"]}
    return pack({"manifest.json": (json.dumps(manifest).encode(), False)})


ZIP = {"Content-Type": "application/zip"}


async def test_packages_by_hand(running: Running, raw: httpx.AsyncClient) -> None:
    made = await raw.post("/api/node/packages", files={"package": ("hello.zip", zipped("1.0.0"))})
    assert (made.status_code, made.json()["packageVersion"], made.json()["origin"]) == (201, "1.0.0", "manual")
    assert made.headers["Location"] == "/api/node/packages/hello/configuration"
    assert (await raw.get(made.headers["Location"])).json() == made.json()
    newer = await raw.put("/api/node/packages", content=zipped("1.1.0"), headers=ZIP)
    assert (newer.status_code, newer.json()["versions"]) == (200, ["1.1.0", "1.0.0"])
    back = await raw.put("/api/node/packages?rollback=true", content=zipped("1.0.0"), headers=ZIP)
    assert back.json()["packageVersion"] == "1.0.0"
    assert [p["packageName"] for p in (await raw.get("/api/node/packages/configuration")).json()] == ["hello"]
    gone = await raw.delete("/api/node/packages", params={"packageName": "Hello"})
    assert gone.json() == {"deleted": ["hello@1.0.0", "hello@1.1.0"]}
    assert (await raw.get("/api/node/packages/configuration")).json() == []


async def test_of_uploads_at_once_one_is_the_first(running: Running, raw: httpx.AsyncClient) -> None:
    versions = [f"1.0.{number}" for number in range(8)]
    answers = await asyncio.gather(
        *(raw.post("/api/node/packages", content=zipped(version), headers=ZIP) for version in versions)
    )
    assert sorted(answer.status_code for answer in answers) == [201, *[409] * 7]
    assert len(running.packages.store.installed()) == 1


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"", "application/zip", 422, "UPLOAD"),
        (b"no zip at all", "application/zip", 422, "PKG_CORRUPT"),
        (zipped("1.0.0")[:-30], "application/octet-stream", 422, "PKG_CORRUPT"),
        (pack({"../up": (b"x", False)}), "application/zip", 422, "PKG_UNSAFE_PATH"),
        (pack({"a": (b"x", False)}), "application/zip", 422, "PKG_MANIFEST"),
        (b"{}", "application/json", 415, "UNSUPPORTED_MEDIA_TYPE"),
        (b"x", "multipart/form-data; boundary=b", 422, "UPLOAD"),
        (b"x", "multipart/form-data", 422, "UPLOAD"),
        (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n', "multipart/form-data; boundary=b",
         422, "UPLOAD"),
    ],
)  # fmt: skip
async def test_an_upload_that_is_no_package_changes_nothing(
    running: Running, raw: httpx.AsyncClient, body: bytes, kind: str, status: int, code: str
) -> None:
    for method in ("POST", "PUT"):
        answer = await raw.request(method, "/api/node/packages", content=body, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    assert running.packages.store.installed() == {}
    assert [entry.name for entry in running.packages.store.root.iterdir()] == []


async def test_what_is_asked_for_somebody_carries_the_id_of_the_request_on(client: NodeClient) -> None:
    heard: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        writer.write(b"HTTP/1.1 503 no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        before = correlation.set("asked-by-somebody")
        try:
            with pytest.raises(Waiting):
                await client.logs(url, "web.0", 1)
        finally:
            correlation.reset(before)
        with pytest.raises(Waiting):
            await client.assign(url, assignment(1), NEVER)
        with pytest.raises(Waiting):
            await client.logs(url, "web.0", 1)
    ids = [re.findall(r"x-correlation-id: (\S+)", request) for request in heard]
    assert ids[:2] == [["asked-by-somebody"], ["2.1"]]
    assert re.fullmatch("[0-9a-f]{32}", ids[2][0])


async def test_what_ends_by_itself_meanwhile_counts_as_stopped(
    raw: httpx.AsyncClient, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running.agent.claim(Claim(epoch=2))
    await running.agent.assign(assignment(2))
    while not running.agent.book.whole().settled:
        await asyncio.sleep(0.01)
    stop = running.agent.kill

    async def late(replica: str) -> None:
        if replica == "web.0":
            raise Missing("no process 'web.0' on a")
        await stop(replica)

    monkeypatch.setattr(running.agent, "kill", late)
    answer = await raw.put("/api/node/processes/web/kill")
    assert (answer.status_code, answer.json()["replicas"]) == (202, ["web.0", "web.1"])


async def test_one_agent_promises_another_not_to_start_a_replica(running: Running) -> None:
    ask = Ask(cluster="c", node="a", holder="b", replica="web.0", seconds=30.0)
    peers = HttpPeers(running.http, lambda: TOKEN)
    assert await peers.failsafe_ack(running.url, ask) == Ack(node="a", replica="web.0")
    with pytest.raises(Invalid, match="WRONG_NODE"):
        await peers.failsafe_ack(running.url, ask.model_copy(update={"node": "c"}))
    with pytest.raises(Denied, match="UNAUTHORIZED"):
        await HttpPeers(running.http, lambda: "wrong").failsafe_ack(running.url, ask)
    with pytest.raises(Waiting):
        await peers.failsafe_ack("http://127.0.0.1:9", ask)
    claimed = Claim(epoch=2)
    await running.agent.claim(claimed)
    await running.agent.assign(assignment(1))
    while running.agent.table.rows.get("web.0") is None:
        await asyncio.sleep(0.01)
    with pytest.raises(Refused, match="FAILSAFE_REFUSED"):
        await peers.failsafe_ack(running.url, ask)
