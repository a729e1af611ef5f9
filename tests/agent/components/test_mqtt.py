"""The mqtt publisher against a real broker, also while it restarts."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from agent.components import folder
from agent.errors import Waiting
from agent.sdk import Message, ObjectState, SettingsError, Subscription
from agent.sdk.testing import publishing, until
from tests.brokers import Server, mosquitto, receiving

pytestmark = pytest.mark.server("mosquitto")


@pytest.fixture
def server(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Server]:
    made = mosquitto(tmp_path, free_port())
    made.start()
    yield made
    made.stop()


def to(at: Server, name: str = "worker.0", **settings: Any) -> Any:
    given = {"server": f"mqtt://127.0.0.1:{at.port}", "topic": "orders", **settings}
    return publishing(folder("mqtt"), given, name=name)


async def subscribed(server: Server, count: int) -> None:
    """The broker knows so many shared subscriptions."""
    await until(lambda: server.log.read_text().count("New client connected") >= count)
    await asyncio.sleep(0.3)


async def test_a_message_arrives_as_it_went(server: Server) -> None:
    routes = [{"type": "Other", "topic": "plant/7/other"}]
    async with (
        to(server, routes=routes, qos=2) as publisher,
        receiving(publisher, Subscription("orders")) as orders,
        receiving(publisher, Subscription("plant/+/other", "Other")) as others,
    ):
        await subscribed(server, 3)
        message = Message({"a": "ü"}, "Order", source="s.0", correlation_id="c")
        await publisher.publish(message)
        await publisher.publish(Message("x", "Other"))
        await until(lambda: orders and others)
        assert orders == [message]
        assert others[0].type == "Other"


async def test_each_instance_gets_a_message_once_whatever_its_replicas(server: Server) -> None:
    async with (
        to(server, "a.0") as a0,
        to(server, "a.1") as a1,
        to(server, "b.0") as b0,
        receiving(a0, Subscription("orders")) as at_a0,
        receiving(a1, Subscription("orders")) as at_a1,
        receiving(b0, Subscription("orders", "T")) as at_b0,
    ):
        await subscribed(server, 6)
        sent = [Message(number, "T") for number in range(50)]
        for message in sent:
            await a0.publish(message)
        await b0.publish(Message("another type", "U"))
        await until(lambda: len(at_a0) + len(at_a1) == 51 and len(at_b0) == 50)
        assert at_a0
        assert at_a1
        assert {message.id for message in sent} <= {message.id for message in at_a0 + at_a1}
        assert [message.content for message in at_b0] == list(range(50))


async def test_a_refused_message_comes_again(server: Server) -> None:
    async with to(server) as publisher, receiving(publisher, Subscription("orders"), 1) as taken:
        await subscribed(server, 2)
        await publisher.publish(Message("x", "T"))
        await until(lambda: taken)
        assert [message.content for message in taken] == ["x"]


async def test_what_was_not_acknowledged_comes_again_to_the_next_process(server: Server) -> None:
    async with to(server) as publisher:
        async with receiving(publisher, Subscription("orders"), refusals=1000):
            await subscribed(server, 2)
            for number in range(5):
                await publisher.publish(Message(number))
            await asyncio.sleep(0.2)
        await publisher.publish(Message("while nobody received"))
        async with receiving(publisher, Subscription("orders")) as taken:
            await until(lambda: len(taken) == 6)
        assert [message.content for message in taken] == [*range(5), "while nobody received"]


@pytest.mark.parametrize("shared", [True, False])
async def test_messages_survive_a_restart_of_the_mosquitto(shared: bool, server: Server) -> None:
    async with to(server, shared=shared) as publisher, receiving(publisher, Subscription("orders")) as taken:
        await subscribed(server, 2)
        await publisher.publish(Message("before"))
        await until(lambda: len(taken) == 1)
        await asyncio.to_thread(server.stop)
        waiting = asyncio.create_task(publisher.publish(Message("while it was away")))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await asyncio.to_thread(server.start)
        await asyncio.wait_for(waiting, 20)
        await subscribed(server, 4)
        await publisher.publish(Message("afterwards"))
        await until(lambda: taken[-1].content == "afterwards", within=20)
        seen = [message.content for message in taken]
        if shared:  # mosquitto has forgotten the subscription: what comes before we are back may be lost
            seen = [content for content in seen if content != "while it was away"]
            assert seen == ["before", "afterwards"]
        else:
            assert seen == ["before", "while it was away", "afterwards"]


async def test_a_broker_that_is_away_at_the_start_is_waited_for(server: Server) -> None:
    await asyncio.to_thread(server.stop)
    async with to(server, publishWithin=0.3) as publisher:
        with pytest.raises(Waiting, match=r"MQTT_UNREACHABLE not acknowledged within 0\.3 s"):
            await publisher.publish(Message("x"))
        assert publisher.state is ObjectState.STARTED
    async with to(server) as publisher:
        waiting = asyncio.create_task(publisher.publish(Message("x")))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(server.start)
        await asyncio.wait_for(waiting, 20)


async def test_others_can_be_understood_and_understand(server: Server) -> None:
    async with (
        aiomqtt.Client("127.0.0.1", server.port) as other,
        to(server, topic="plain", body="content", retain=True) as publisher,
        receiving(publisher, Subscription("orders")) as taken,
    ):
        await subscribed(server, 3)
        await other.publish("orders", b"\xff\x00", qos=1)
        await until(lambda: taken)
        assert (taken[0].content, taken[0].properties) == ("/wA=", {"topic": "orders", "encoding": "base64"})
        await publisher.publish(Message({"t": 21.5}))
        await other.subscribe("plain")
        async for found in other.messages:
            assert (found.payload, found.retain) == (b'{"t":21.5}', True)
            break


async def test_wrong_credentials_fail_the_publisher(tmp_path: Path, free_port: Callable[[], int]) -> None:
    passwords = tmp_path / "passwords"
    await asyncio.to_thread(
        subprocess.run, ["mosquitto_passwd", "-b", "-c", str(passwords), "tdie", "s3cret"], check=True, timeout=20
    )
    guarded = mosquitto(tmp_path, free_port(), f"allow_anonymous false\npassword_file {passwords}")
    guarded.start()
    try:
        (tmp_path / "secret").write_text("s3cret\n")
        async with to(guarded, user="tdie", password=f"file:{tmp_path}/secret") as publisher:
            await publisher.publish(Message("x"))
        async with to(guarded, user="tdie", password="hunter2") as publisher:
            await until(lambda: publisher.state is ObjectState.ERRORED)
            assert "MQTT_DENIED" in publisher.cause
            assert "hunter2" not in publisher.cause
    finally:
        guarded.stop()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"server": "http://a"}, "'server' must be mqtt://HOST"),
        ({"topic": "a/#"}, "wildcards"),
        ({"qos": 3}, "'qos' must be one of 0, 1, 2"),
    ],
)
async def test_wrong_settings_are_named(settings: dict[str, Any], why: str, server: Server) -> None:
    with pytest.raises(SettingsError, match=why):
        async with to(server, **settings):
            pass
