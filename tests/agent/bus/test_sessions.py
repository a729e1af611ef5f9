"""Hosts and their bus over the real socket, with the real file and its thread."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bus import people
from agent.bus.client import WINDOW_COUNT, BusPublisher, consume
from agent.bus.edge import MachineBus
from agent.bus.frames import FrameInvalid, Frames, frame
from agent.bus.line import Line
from agent.bus.store import ThreadStore
from agent.bus.table import Table
from agent.bus.values import Limits
from agent.clock import SystemClock
from agent.components import folder
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.errors import Invalid, Refused
from agent.keeper.address import unix_address
from agent.keeper.protocol import Code, HostOrder
from agent.sdk import Message, Subscription
from agent.sdk.message import MessageInvalid
from agent.sdk.testing import publishing

CODE = Code("p", "1.0.0", "d", "/", "x:Y")
HOST = HostOrder("shop.0", "shop", "a", "s", "python", CODE, subscriptions=(("orders", ""),))


class Nobody:
    """No other node."""

    async def send(self, api: str, node: str, envelopes: object) -> None:
        raise AssertionError("there is nobody to send to")


@asynccontextmanager
async def bus(
    data: Path, hosts: Mapping[int, HostOrder] | None = None, limits: Limits | None = None
) -> AsyncIterator[MachineBus]:
    clock = SystemClock()
    made = MachineBus(
        data / "bus.sock",
        ThreadStore(data / "bus.sqlite"),
        cluster="c",
        node="a",
        consul=MemoryConsul(Store(now=clock.now)),
        peers=Nobody(),
        clock=clock,
        limits=limits,
    )
    made.bus.routes.remembered(Table({"shop": (Subscription("orders"),)}))
    known = {os.getpid(): HOST} if hosts is None else hosts
    (data / "bus.sock").unlink(missing_ok=True)  # of an earlier agent
    running = asyncio.create_task(made.run(known.get, lambda code, detail: None), name="bus")
    try:
        await made.bus.ready.wait()
        await until((data / "bus.sock").exists)
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await made.close()


@asynccontextmanager
async def publisher(data: Path) -> AsyncIterator[BusPublisher]:
    made = BusPublisher(data / "bus.sock")
    running = asyncio.create_task(made.run(), name="publisher")
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def consumer(data: Path, got: list[Message], fail: int = 0) -> AsyncIterator[None]:
    left = [fail]

    async def deliver(message: Message) -> None:
        got.append(message)
        if left[0]:
            left[0] -= 1
            raise OSError("no disk")

    running = asyncio.create_task(consume(data / "bus.sock", deliver), name="consumer")
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _ended(line: Line) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(OSError, match="gone"):
            await _receive_for_ever(line)


async def _receive_for_ever(line: Line) -> None:
    while True:
        await line.receive()


async def until(true: object, within: float = 20.0) -> None:
    async with asyncio.timeout(within):
        while not true():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_what_is_published_arrives_as_it_was(tmp_path: Path) -> None:
    got: list[Message] = []
    async with bus(tmp_path) as node, publisher(tmp_path) as out, consumer(tmp_path, got):
        sent = [Message({"n": n}, type="New", properties={"p": "é"}, correlation_id="c") for n in range(50)]
        await asyncio.gather(*(out.publish(message, "orders") for message in sent))
        await until(lambda: len(got) == 50)
        assert got == sent
        await until(lambda: not list(people.everything(node.bus)))
    assert stat.S_IMODE((tmp_path / "bus.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "bus.sqlite").stat().st_mode) == 0o600


async def test_publishing_waits_for_an_agent_that_is_away_and_loses_nothing(tmp_path: Path) -> None:
    got: list[Message] = []
    async with publisher(tmp_path) as out, consumer(tmp_path, got):
        sent = [Message(str(n)) for n in range(2 * WINDOW_COUNT)]
        waiting = asyncio.gather(*(out.publish(message, "orders") for message in sent))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert len(out._unaccepted) == WINDOW_COUNT  # the rest waits where it was made
        for _ in range(3):  # an agent comes and goes
            async with bus(tmp_path):
                await asyncio.sleep(0.1)
        async with bus(tmp_path):
            await waiting
            await until(lambda: {m.id for m in got} == {m.id for m in sent})


async def test_a_host_that_comes_in_the_moment_of_the_end_is_sent_away(tmp_path: Path) -> None:
    for turns in range(10):
        async with bus(tmp_path):
            host = socket.socket(socket.AF_UNIX)
            with unix_address(tmp_path / "bus.sock") as address:
                host.connect(address)
            for _ in range(turns):
                await asyncio.sleep(0)
        line = Line(*await asyncio.open_unix_connection(sock=host))
        await _ended(line)
        line.close()
        gc.collect()  # a connection that nobody closed would complain


async def test_an_error_has_it_tried_again(tmp_path: Path) -> None:
    got: list[Message] = []
    limits = Limits(first_pause=0.01)
    async with bus(tmp_path, limits=limits) as node, publisher(tmp_path) as out, consumer(tmp_path, got, fail=3):
        await out.publish(Message("x"), "orders")
        await until(lambda: len(got) == 4)
        assert len({message.id for message in got}) == 1
        await until(lambda: not list(people.everything(node.bus)))


async def test_the_end_of_an_agent_counts_no_attempt_and_the_end_of_a_host_one(tmp_path: Path) -> None:
    working = asyncio.Event()

    async def deliver(message: Message) -> None:
        working.set()
        await asyncio.Event().wait()

    async with publisher(tmp_path) as out:
        async with bus(tmp_path):
            await out.publish(Message("x"), "orders")
            running = asyncio.create_task(consume(tmp_path / "bus.sock", deliver), name="consumer")
            await working.wait()
        working.clear()
        async with bus(tmp_path) as node:
            (left,) = people.everything(node.bus)
            assert left.attempts == 0
            with unix_address(tmp_path / "bus.sock") as address:
                line = Line(*await asyncio.open_unix_connection(address))
            line.send({"do": "hello", "take": 1})
            while not any(head.get("do") == "deliver" for head, _ in await line.receive()):
                pass
            line.close()  # as a host that was killed
            await until(lambda: left.attempts == 1)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_a_host_that_becomes_another_replica_comes_back_as_that(tmp_path: Path) -> None:
    hosts, got = {os.getpid(): replace(HOST, subscriptions=())}, list[Message]()
    async with bus(tmp_path, hosts), publisher(tmp_path) as out, consumer(tmp_path, got):
        await out.publish(Message("x"), "orders")
        await asyncio.sleep(0.2)
        assert got == []
        hosts[os.getpid()] = replace(HOST, replica="other.0", instance="other")
        await asyncio.sleep(0.5)
        hosts[os.getpid()] = HOST
        await until(lambda: len(got) == 1)


async def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    async with bus(tmp_path) as node, publisher(tmp_path) as out:
        (pages,) = await node.bus.store.do(lambda file: file.db.execute("PRAGMA page_count").fetchone())
        await node.bus.store.do(lambda file: file.db.execute(f"PRAGMA max_page_count={pages}").fetchone())
        publishing_ = asyncio.create_task(out.publish(Message("x" * 500_000), "orders"))
        await asyncio.sleep(0.3)
        assert not publishing_.done()
        await node.bus.store.do(lambda file: file.db.execute("PRAGMA max_page_count=100000").fetchone())
        await asyncio.wait_for(publishing_, 10)
        assert len(list(people.everything(node.bus))) == 1


async def test_a_process_that_is_no_host_is_not_let_in(tmp_path: Path) -> None:
    async with bus(tmp_path, hosts={}), publisher(tmp_path) as out:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await out.publish(Message("x"), "orders")
        with unix_address(tmp_path / "bus.sock") as address:
            line = Line(*await asyncio.open_unix_connection(address))
        line.send({"do": "hello", "take": 0})
        ((head, _),) = await line.receive()
        assert (head["do"], head["code"]) == ("refused", "NO_HOST")
        with pytest.raises(OSError, match="gone"):
            await line.receive()
        line.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"\xff" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
        frame({"do": "hello", "take": -1}),
        frame({"do": "hello", "take": 0}) + frame({"do": "dance"}),
        frame({"do": "hello", "take": 0}) + frame({"do": "publish", "n": "x"}),
        frame({"do": "hello", "take": 0}) + frame({"do": "done", "n": 1}),
        frame({"do": "hello", "take": 1}) + frame({"do": "failed"}),
    ],
    ids=["bytes", "http", "window", "unknown", "no number", "not its", "failed nothing"],
)
async def test_nonsense_ends_the_connection_and_nothing_else(tmp_path: Path, sent: bytes) -> None:
    async with bus(tmp_path), publisher(tmp_path) as out:
        with unix_address(tmp_path / "bus.sock") as address:
            line = Line(*await asyncio.open_unix_connection(address))
        line.send_frame(sent)
        await _ended(line)
        line.close()
        await out.publish(Message("x"), "orders")


async def test_what_the_bus_never_takes_is_said(tmp_path: Path) -> None:
    async with bus(tmp_path), publisher(tmp_path) as out:
        with pytest.raises(Invalid, match="MESSAGE_TOO_LARGE"):
            await out.publish(Message("x" * (1 << 20)), "orders")
        with pytest.raises(Refused, match="MESSAGE_INVALID"):
            await out.publish(Message("x", id="i" * 201), "orders")
        await out.publish(Message("x" * 1_000_000), "orders")


async def test_the_package_routes_by_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TDIE_BUS", str(tmp_path / "bus.sock"))
    settings = {"topic": "orders", "routes": [{"type": "News", "topic": "news"}]}
    async with bus(tmp_path) as node:
        node.bus.lane("shop")
        await asyncio.sleep(0.01)
        await _route(node, settings)


async def _route(node: MachineBus, settings: Mapping[str, object]) -> None:
    async with publishing(folder("bus"), settings) as made:
        await made.publish(Message("a", type="New"))
        await made.publish(Message("b", type="News"))
        topics = {(d.topic, d.type) for d in people.everything(node.bus)}
        assert topics == {("orders", "New"), ("news", "News")}
        (dead,) = [d for d in people.everything(node.bus) if d.type == "News"]
        body = (await node.bus.bodies([dead]))[dead.seq]
        assert json.loads(body)["content"] == "b"
        assert Message.from_json(body).content == "b"
        with pytest.raises(MessageInvalid):
            Message.from_json(body[:-1])


@given(st.lists(st.tuples(st.dictionaries(st.text(), st.integers()), st.binary(max_size=50)), max_size=8), st.data())
def test_frames_survive_any_cut(sent: list[tuple[dict[str, int], bytes]], data: st.DataObject) -> None:
    whole = b"".join(frame(head, body) for head, body in sent)
    frames, found, at = Frames(), [], 0
    while at < len(whole):
        size = data.draw(st.integers(1, len(whole) - at))
        found += frames.feed(whole[at : at + size])
        at += size
    assert found == sent


def test_a_frame_that_is_too_long_is_refused_before_it_is_held() -> None:
    with pytest.raises(FrameInvalid):
        Frames().feed(b"\0\0\0\x02\xff\xff\xff\xff")
    with pytest.raises(FrameInvalid):
        Frames().feed(b"\0\0\0\x02\0\0\0\0[]")
