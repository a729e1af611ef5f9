"""The nats publisher against a real server, also while it restarts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from agent.components import folder
from agent.errors import Refused, Waiting
from agent.sdk import Message, ObjectState, Subscription
from agent.sdk.testing import publishing, until
from tests.brokers import Server, receiving
from tests.brokers import nats as broker


@pytest.fixture
def server(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Server]:
    """A NATS server with JetStream that keeps its data when it is stopped and started again."""
    made = broker(tmp_path, free_port(), "-V")  # it writes down who subscribes
    made.start()
    yield made
    made.stop()


def to(server: Server, name: str = "worker.0", **settings: Any) -> Any:
    given = {"servers": f"nats://127.0.0.1:{server.port}", "topic": "orders", **settings}
    return publishing(folder("nats"), given, name=name)


async def subscribed(server: Server, count: int) -> None:
    """The server knows so many plain subscriptions: it keeps nothing for who is not there yet, unlike a stream."""
    await until(lambda: len(re.findall(r"\[SUB (?:orders|others) ", server.log.read_text())) >= count)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_message_arrives_as_it_went(stream: bool, server: Server) -> None:
    routes = [{"type": "Other", "topic": "others"}]
    async with (
        to(server, jetStream=stream, routes=routes) as publisher,
        receiving(publisher, Subscription("orders")) as orders,
        receiving(publisher, Subscription("others", "Other")) as others,
    ):
        await subscribed(server, 0 if stream else 2)
        message = Message({"a": "ü"}, "Order", source="s.0", correlation_id="c")
        await publisher.publish(message)
        await publisher.publish(Message("x", "Other"))
        await until(lambda: orders and others)
        assert orders == [message]
        assert others[0].type == "Other"


@pytest.mark.parametrize("stream", [True, False])
async def test_each_instance_gets_a_message_once_whatever_its_replicas(stream: bool, server: Server) -> None:
    async with (
        to(server, "a.0", jetStream=stream) as a0,
        to(server, "a.1", jetStream=stream) as a1,
        to(server, "b.0", jetStream=stream) as b0,
        receiving(a0, Subscription("orders")) as at_a0,
        receiving(a1, Subscription("orders")) as at_a1,
        receiving(b0, Subscription("orders", "T")) as at_b0,
    ):
        await subscribed(server, 0 if stream else 3)
        sent = [Message(number, "T") for number in range(50)]
        for message in sent:
            await a0.publish(message)
        await b0.publish(Message("another type", "U"))
        await until(lambda: len(at_a0) + len(at_a1) == 51 and len(at_b0) == 50)
        assert at_a0
        assert at_a1
        assert {message.id for message in sent} <= {message.id for message in at_a0 + at_a1}
        assert [message.content for message in at_b0] == list(range(50))


@pytest.mark.parametrize("stream", [True, False])
async def test_a_refused_message_comes_again(stream: bool, server: Server) -> None:
    async with to(server, jetStream=stream) as publisher, receiving(publisher, Subscription("orders"), 2) as taken:
        await subscribed(server, 0 if stream else 1)
        await publisher.publish(Message("x", "T"))
        await until(lambda: taken)
        assert [message.content for message in taken] == ["x"]


async def test_a_cancellation_that_the_library_loses_ends_it_too(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetching, fetches, lost = JetStreamContext.PullSubscription.fetch, [], asyncio.Event()

    async def loses(self: JetStreamContext.PullSubscription, *given: Any, **more: Any) -> list[Msg]:
        """What `asyncio.wait_for` does on Python 3.11 when a message comes in the moment it is cancelled."""
        waiting = asyncio.ensure_future(fetching(self, *given, **more))
        fetches.append(waiting)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            lost.set()
            return await waiting

    monkeypatch.setattr(JetStreamContext.PullSubscription, "fetch", loses)
    async with to(server, jetStream=True) as publisher:
        async with receiving(publisher, Subscription("orders")) as taken:
            await publisher.publish(Message("x"))
            await until(lambda: taken and not fetches[-1].done())
            asyncio.get_running_loop().call_later(0.5, lambda: asyncio.ensure_future(publisher.publish(Message("y"))))
        assert lost.is_set()
        await until(lambda: len(taken) == 2)


async def test_messages_survive_a_restart_of_the_server(server: Server) -> None:
    async with to(server, jetStream=True) as publisher:
        for number in range(20):
            await publisher.publish(Message(number))
        await asyncio.to_thread(server.stop, kill=True)
        waiting = asyncio.create_task(publisher.publish(Message("while it was away")))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await asyncio.to_thread(server.start)
        await asyncio.wait_for(waiting, 20)
        async with receiving(publisher, Subscription("orders")) as taken:
            await until(lambda: len(taken) == 21, within=20)
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            await publisher.publish(Message("afterwards"))
            await until(lambda: taken[-1].content == "afterwards", within=20)
        assert [message.content for message in taken] == [*range(20), "while it was away", "afterwards"]


async def test_plain_subscriptions_survive_a_restart_too(server: Server) -> None:
    async with to(server) as publisher, receiving(publisher, Subscription("orders")) as taken:
        await subscribed(server, 1)
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        await publisher.publish(Message("x"))
        await until(lambda: taken, within=20)


async def test_a_server_that_is_away_at_the_start_is_waited_for(server: Server) -> None:
    await asyncio.to_thread(server.stop)
    async with to(server, publishWithin=0.2) as publisher:
        with pytest.raises(Waiting, match=r"NATS_UNREACHABLE not confirmed within 0\.2 s"):
            await publisher.publish(Message("x"))
        assert publisher.state is ObjectState.STARTED
    async with to(server, jetStream=True) as publisher:
        waiting = asyncio.create_task(publisher.publish(Message("x")))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(server.start)
        await asyncio.wait_for(waiting, 20)


async def test_the_same_message_twice_counts_once(server: Server) -> None:
    async with to(server, jetStream=True) as publisher, receiving(publisher, Subscription("orders")) as taken:
        message = Message("x")
        for _ in range(3):
            await publisher.publish(message)
        await publisher.publish(Message("end"))
        await until(lambda: taken and taken[-1].content == "end")
        assert [one.content for one in taken] == ["x", "end"]


async def test_what_others_write_is_delivered(server: Server) -> None:
    async with to(server) as publisher, receiving(publisher, Subscription("orders")) as taken:
        await subscribed(server, 1)
        other = await nats.connect(f"nats://127.0.0.1:{server.port}")
        await other.publish("orders", b'{"temperature": 21.5}')
        await until(lambda: taken)
        assert (taken[0].content, taken[0].properties["topic"]) == ({"temperature": 21.5}, "orders")
        reader = await other.subscribe("plain")
        async with to(server, topic="plain", body="content") as plain:
            await plain.publish(Message("just text"))
        assert (await reader.next_msg(5)).data == b"just text"
        await other.close()


async def test_too_large_is_refused_at_once(server: Server) -> None:
    async with to(server) as publisher:
        with pytest.raises(Refused, match="NATS_REFUSED"):
            await publisher.publish(Message("x" * 2_000_000))


async def test_wrong_credentials_fail_the_publisher(tmp_path: Path, free_port: Callable[[], int]) -> None:
    port = free_port()
    guarded = broker(tmp_path, port, "--auth", "s3cret")
    guarded.start()
    try:
        (tmp_path / "token").write_text("s3cret\n")
        async with to(guarded, token=f"file:{tmp_path}/token") as publisher:
            await publisher.publish(Message("x"))
        async with to(guarded, token="hunter2") as publisher:
            await until(lambda: publisher.state is ObjectState.ERRORED)
            assert "NATS_DENIED" in publisher.cause
            assert "hunter2" not in publisher.cause
    finally:
        guarded.stop()
