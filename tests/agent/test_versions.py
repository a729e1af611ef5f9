"""Programs of different versions on one cluster: what an earlier one wrote is read, what a later one adds is left out or waited
for, and nobody stops a process because of it. FAULTS row 46."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from agent import keys
from agent.client import NodeClient
from agent.clock import SystemClock
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.edges import Edges, NodeSettings
from agent.errors import Invalid, Waiting
from agent.keeper import codec
from agent.keeper.client import KeeperClient
from agent.keeper.hosted import restored
from agent.ledger import MemoryLedger, SqliteLedger
from agent.node import Agent
from agent.ordered import Ordered
from agent.wire import Accepted, Assignment, Claim, Claimed, Report, content_digest
from reconciler.simulation.disk import SimInstaller, SimPorts, SimProber
from reconciler.simulation.machine import Machine
from tests.agent.messages import assignment, hosted, written
from tests.agent.test_node_api_http import TOKEN, Running

RECORDED = Path(__file__).parents[1] / "golden" / "wire"
RELEASED = "0.1.0"
MODELS: dict[str, type[BaseModel]] = {
    "assignment": Assignment, "claim": Claim, "accepted": Accepted, "report": Report, "claimed": Claimed,
}  # fmt: skip
READERS: dict[str, Callable[[Any], Any]] = {
    "order": lambda raw: json.loads(codec.order_text(codec.order_from(raw))),
    "row": lambda raw: {
        **_plain(codec.row_from(raw)),
        "order": json.loads(codec.order_text(codec.row_from(raw).order)),
    },
    "stored": lambda raw: json.loads(restored(raw).stored_text()),
}
OBEYED = {"assignment", "claim", "order"}  # half of it could be wrong; everything else is only told


def _plain(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__ if name != "order"}


def lines(version: str) -> list[tuple[str, Any]]:
    """Kind and parsed JSON of each message of a version."""
    text = (RECORDED / f"{version}.txt").read_text()
    return [(kind, json.loads(body)) for kind, _, body in (line.partition(" ") for line in text.splitlines())]


def read(kind: str, raw: Any) -> Any:
    """What today's code makes of it, written again."""
    if kind in MODELS:
        return json.loads(MODELS[kind].model_validate_json(json.dumps(raw)).model_dump_json(by_alias=True))
    return READERS[kind](raw)


def lacking(small: Any, large: Any, at: str = "") -> list[str]:
    """Places of `small` that are not the same in `large`; `large` may have more fields."""
    if isinstance(small, dict) and isinstance(large, dict):
        return [hit for key, value in small.items() for hit in lacking(value, large.get(key, "nothing"), f"{at}.{key}")]
    if isinstance(small, list) and isinstance(large, list) and len(small) == len(large):
        return [hit for number, value in enumerate(small) for hit in lacking(value, large[number], f"{at}[{number}]")]
    return [] if small == large else [f"{at}: {small!r} is read as {large!r}"]


def objects(raw: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of each object of a message whose fields are ours to name."""
    if isinstance(raw, dict):
        if at and at[-1] in ("settings", "env", "labels"):
            return
        yield at
        for key, value in raw.items():
            yield from objects(value, (*at, key))
    elif isinstance(raw, list):
        for number, value in enumerate(raw):
            yield from objects(value, (*at, number))


def changed(raw: Any, path: tuple[str | int, ...], **fields: Any) -> Any:
    """The message with these fields in the object at the path."""
    result = copy.deepcopy(raw)
    found = result
    for part in path:
        found = found[part]
    found.update(fields)
    return result


VERSIONS = sorted(file.stem for file in RECORDED.glob("*.txt"))
EARLIER = [
    pytest.param(kind, raw, id=f"{v}-{number}-{kind}") for v in VERSIONS for number, (kind, raw) in enumerate(lines(v))
]
LATER = [
    pytest.param(kind, raw, path, id=f"{number}-{kind}-{'.'.join(map(str, path)) or 'itself'}")
    for number, (kind, raw) in enumerate(lines(RELEASED))
    for path in objects(raw)
]


@pytest.mark.parametrize(("kind", "raw"), EARLIER)
def test_what_an_earlier_version_wrote_means_the_same(kind: str, raw: Any) -> None:
    assert lacking(raw, read(kind, raw)) == []


def test_what_is_not_new_is_written_as_the_last_release_reads_it() -> None:
    """A field that would be refused by agents and keepers of the last release is left out while it has its default."""
    known = [(kind, {(path, key) for path in objects(raw) for key in _at(raw, path)}) for kind, raw in lines(RELEASED)]
    for (kind, body), (_, fields) in zip(written(), known, strict=True):
        raw = json.loads(body)
        new = {(path, key) for path in objects(raw) for key in _at(raw, path)} - fields
        assert kind not in OBEYED or not new, f"{kind}: {sorted(map(str, new))}"


def _at(raw: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        raw = raw[part]
    return raw


@pytest.mark.parametrize(("kind", "raw", "path"), LATER)
def test_a_field_of_a_later_version_is_left_out_or_refused_by_name(
    kind: str, raw: Any, path: tuple[str | int, ...]
) -> None:
    tomorrow = changed(raw, path, tomorrow=1)
    obeyed = kind in OBEYED or "order" in path or (kind, path[:1]) == ("claimed", ("assignment",))
    refers = kind not in OBEYED and kind in MODELS and path and path[-1] == "package"  # a package is named as in orders
    if not obeyed and not refers:
        assert read(kind, tomorrow) == read(kind, raw)
    elif kind in MODELS:
        with pytest.raises(ValueError, match="extra_forbidden"):
            read(kind, tomorrow)
    else:
        with pytest.raises(Invalid, match=r"VERSION_SKEW .*unknown fields in the (order|code): tomorrow"):
            read(kind, tomorrow)


# ------------------------------------------------------------------------------------------------- controller and agent


@asynccontextmanager
async def node(folder: Path) -> AsyncIterator[tuple[Agent, httpx.AsyncClient]]:
    """An agent, and its node API without a network."""
    made = Running(folder)
    running = asyncio.create_task(made.agent.run(), name="agent")
    transport = httpx.ASGITransport(made.server.config.app)  # type: ignore[arg-type]  # uvicorn also takes a name
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://a", headers=headers) as client:
        try:
            yield made.agent, client
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await made.http.aclose()
            made.socket.close()


VALUES = [
    (("replicas", 0, "policy"), {"lease": "tomorrow"}),
    (("replicas", 0, "policy", "health"), {"kind": "tomorrow"}),
    (("replicas", 0, "policy", "restart"), {"mode": "tomorrow"}),
    ((), {"wire": 2}),
    ((), {"tomorrow": 1}),
    (("replicas", 0, "spec", "resources"), {"tomorrow": 1}),
]


@pytest.mark.parametrize(("path", "fields"), VALUES)
async def test_an_agent_waits_for_what_a_newer_controller_wants(
    tmp_path: Path, path: tuple[str | int, ...], fields: dict[str, Any]
) -> None:
    async with node(tmp_path) as (agent, client):
        assert (await client.put("/api/node/leader", json={"epoch": 3})).status_code == 200
        raw = {**json.loads(assignment().model_dump_json(by_alias=True)), "cluster": "c", "node": "a"}
        answer = await client.put("/api/node/assignment", json=changed(raw, path, **fields))
        assert (answer.status_code, answer.json()["code"]) == (422, "VERSION_SKEW")
        assert (agent.assignment, agent.book.whole().accepted) == (None, None)
        assert (await client.put("/api/node/assignment", json=raw)).status_code == 200


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_agent_obeys_an_earlier_controller(tmp_path: Path, version: str) -> None:
    async with node(tmp_path) as (agent, client):
        assert (await client.put("/api/node/leader", json=dict(lines(version))["claim"])).status_code == 200
        raw = {**dict(lines(version))["assignment"], "cluster": "c", "node": "a"}
        assert (await client.put("/api/node/assignment", json=raw)).json()["digest"] == raw["digest"]
        assert agent.assignment is not None


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"state": "Tomorrow"}, "VERSION_SKEW"), ({"tomorrow": 1}, ""), ({"since": "noon"}, "BAD_ANSWER")],
)
async def test_a_controller_waits_for_a_node_whose_report_it_cannot_read(fields: dict[str, Any], code: str) -> None:
    report = changed(dict(lines(RELEASED))["report"], ("replicas", 0), **fields)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps(report).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    client = NodeClient()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        api = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        if code:
            with pytest.raises(Waiting) as caught:
                await client.report(api, 0, 0.0, "")
            assert caught.value.code == code
        else:
            assert (await client.report(api, 0, 0.0, "")).index == 17
        await client.close()


# ------------------------------------------------------------------------------------------------------ agent and keeper


class RecordedKeeper:
    """A keeper of another version: its rows are a recording, and every request is remembered."""

    def __init__(self, path: Path, row: Any) -> None:
        self.path, self.row = path, row
        self.asked: list[dict[str, Any]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while text := await reader.readline():
            request = json.loads(text)
            self.asked.append(request)
            answers: dict[str, Any] = {"rows": [self.row], "about": {"problems": [], "sandbox": ""}}
            writer.write(codec.line({"id": request["id"], "result": answers.get(request["do"])}))
            if request["do"] == "events":
                writer.write(codec.line({"row": self.row}))
        writer.close()

    @property
    def commands(self) -> list[tuple[str, Any]]:
        """What it was asked to do with the replica it has."""
        orders = [(each["do"], each.get("replica") or each.get("order", {}).get("replica")) for each in self.asked]
        return [(do, replica) for do, replica in orders if replica == self.row["replica"]]


@asynccontextmanager
async def beside(keeper: RecordedKeeper, given: Assignment) -> AsyncIterator[Agent]:
    """An agent that starts with this assignment in its ledger, beside that keeper."""
    clock = SystemClock()
    ledger = MemoryLedger()
    await ledger.save_epoch(given.epoch)
    await ledger.save_assignment(given, Ordered())
    store = Store(now=clock.now)
    store.put(keys.epoch("shop"), str(given.epoch).encode())
    client = KeeperClient(keeper.path)
    installer = SimInstaller(Machine("n1", clock), set())
    for package in given.packages:
        await installer.install(package)
    edges = Edges(
        clock=clock, consul=MemoryConsul(store), keeper=client, ledger=ledger, installer=installer, ports=SimPorts(),
        prober=SimProber(), uniform=lambda low, high: low, agent="x", boot_id="b1",
    )  # fmt: skip
    agent = Agent(NodeSettings(cluster="shop", node="n1", api="http://n1:5100", address="n1"), edges)
    async with await asyncio.start_unix_server(keeper.serve, keeper.path):
        running = asyncio.create_task(agent.run(), name="agent")
        try:
            yield agent
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await client.aclose()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_new_agent_finds_the_hosts_of_an_earlier_keeper_as_they_are(tmp_path: Path, version: str) -> None:
    recorded = dict(lines(version))
    whole = Assignment.model_validate(recorded["assignment"])
    only = whole.replicas[:1]
    given = whole.model_copy(update={"replicas": only, "digest": content_digest(whole.packages, only, whole.policy)})
    keeper = RecordedKeeper(tmp_path / "keeper.sock", recorded["row"])
    async with beside(keeper, given) as agent:
        await until(lambda: agent.book.whole().settled)
        found = agent.book.rows["api.0"]
        assert (found.state, found.healthy, found.pid, found.restarts) == ("Started", True, 4711, 1)
        assert {do for do, _ in keeper.commands} <= {"adjust"}  # which touches no process


async def test_an_agent_waits_when_it_cannot_read_its_keeper(tmp_path: Path) -> None:
    row = json.loads(hosted().row_text())
    keeper = RecordedKeeper(tmp_path / "keeper.sock", changed(row, ("order",), tomorrow=1))
    async with beside(keeper, assignment()) as agent:
        await until(lambda: any(problem.code == "VERSION_SKEW" for problem in agent.book.whole().problems))
        assert not agent.ready
        keeper.row = {**row, "tomorrow": 1}  # the agent was upgraded, so to speak
        await until(lambda: agent.ready and not agent.book.whole().problems)
        assert agent.book.rows["api.0"].pid == 4711
    assert {do for do, _ in keeper.commands} <= {"adjust"}


async def test_an_agent_that_cannot_read_its_assignment_any_more_touches_nothing(tmp_path: Path) -> None:
    """It was downgraded: the controller sends one it understands, and Consul knows the epoch."""
    raw = changed(json.loads(assignment().model_dump_json(by_alias=True)), (), tomorrow=1)

    class Newer(Assignment):
        def model_dump_json(self, **_: Any) -> str:
            return json.dumps(raw)

    path = tmp_path / "ledger.sqlite"
    newer = SqliteLedger(path)
    await newer.load()
    await newer.save_epoch(3)
    await newer.save_assignment(Newer.model_construct(**dict(assignment())), Ordered())
    await newer.close()
    older = SqliteLedger(path)
    held = await older.load()
    await older.close()
    assert (held.assignment, "tomorrow" in held.rebuilt) == (None, True)
    assert path.with_name("ledger.sqlite.bad-1").exists()
