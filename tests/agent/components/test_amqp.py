"""The amqp publisher against a real RabbitMQ, also while it restarts."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aio_pika
import pytest

from agent.components import folder
from agent.consul.process import free_ports
from agent.errors import Refused, Waiting
from agent.sdk import Message, ObjectState, SettingsError, Subscription
from agent.sdk.testing import publishing, until
from tests.brokers import Server, rabbitmq, receiving

pytestmark = [pytest.mark.server("rabbitmq-server"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def rabbit() -> Iterator[Server]:
    with rabbitmq() as made:
        yield made


@pytest.fixture
def exchange() -> str:
    """An exchange for this test alone."""
    return f"test-{uuid.uuid4().hex[:8]}"


def to(rabbit: Server, test: str, name: str = "worker.0", **settings: Any) -> Any:
    given = {"server": f"amqp://127.0.0.1:{rabbit.port}", "topic": "orders", "exchange": test, **settings}
    return publishing(folder("amqp"), given, name=f"{test}-{name}")


@pytest.fixture(autouse=True)
def bound(caplog: pytest.LogCaptureFixture) -> Callable[[int], Awaitable[None]]:
    """Returns once so many queues were bound and are read from: what is published before has no queue to go to."""
    caplog.set_level(logging.INFO)

    async def wait(count: int) -> None:
        await until(lambda: caplog.text.count("through the queue") >= count, within=30)

    return wait


Bound = Callable[[int], Awaitable[None]]


async def test_a_message_arrives_as_it_went(rabbit: Server, exchange: str, bound: Bound) -> None:
    routes = [{"type": "Other", "topic": "plant.7.other"}]
    async with (
        to(rabbit, exchange, routes=routes) as publisher,
        receiving(publisher, Subscription("orders")) as orders,
        receiving(publisher, Subscription("plant.*.other", "Other")) as others,
    ):
        await bound(2)
        message = Message({"a": "ü"}, "Order", source="s.0", correlation_id="c")
        await publisher.publish(message)
        await publisher.publish(Message("x", "Other"))
        await until(lambda: orders and others)
        assert orders == [message]
        assert others[0].type == "Other"


async def test_each_instance_gets_a_message_once_whatever_its_replicas(
    rabbit: Server, exchange: str, bound: Bound
) -> None:
    async with (
        to(rabbit, exchange, "a.0") as a0,
        to(rabbit, exchange, "a.1") as a1,
        to(rabbit, exchange, "b.0") as b0,
        receiving(a0, Subscription("orders")) as at_a0,
        receiving(a1, Subscription("orders")) as at_a1,
        receiving(b0, Subscription("orders", "T")) as at_b0,
    ):
        await bound(3)
        sent = [Message(number, "T") for number in range(50)]
        for message in sent:
            await a0.publish(message)
        await b0.publish(Message("another type", "U"))
        await until(lambda: len(at_a0) + len(at_a1) == 51 and len(at_b0) == 50)
        assert at_a0
        assert at_a1
        assert {message.id for message in sent} <= {message.id for message in at_a0 + at_a1}
        assert [message.content for message in at_b0] == list(range(50))


@pytest.mark.parametrize("refusals", [1, 4])
async def test_a_refused_message_comes_again(refusals: int, rabbit: Server, exchange: str, bound: Bound) -> None:
    async with to(rabbit, exchange) as publisher, receiving(publisher, Subscription("orders"), refusals) as taken:
        await bound(1)
        await publisher.publish(Message("x", "T"))
        await until(lambda: taken, within=20)
        assert [message.content for message in taken] == ["x"]


async def test_what_was_not_acknowledged_comes_again_to_the_next_process(
    rabbit: Server, exchange: str, bound: Bound
) -> None:
    async with to(rabbit, exchange) as publisher:
        async with receiving(publisher, Subscription("orders"), refusals=1000):
            await bound(1)
            for number in range(5):
                await publisher.publish(Message(number))
        await publisher.publish(Message("while nobody received"))
        async with receiving(publisher, Subscription("orders")) as taken:
            await until(lambda: len(taken) == 6)
        assert [message.content for message in taken] == [*range(5), "while nobody received"]


async def test_messages_survive_a_killed_broker(rabbit: Server, exchange: str, bound: Bound) -> None:
    async with to(rabbit, exchange, publishWithin=60) as publisher:
        async with receiving(publisher, Subscription("orders")) as taken:
            await bound(1)
            await publisher.publish(Message("before"))
            await until(lambda: len(taken) == 1)
        for number in range(20):
            await publisher.publish(Message(number))
        await asyncio.to_thread(rabbit.stop, kill=True)
        await asyncio.to_thread(rabbit.start)
        async with receiving(publisher, Subscription("orders")) as taken:
            await bound(2)
            await until(lambda: len(taken) == 20, within=20)
            await asyncio.to_thread(rabbit.stop, kill=True)
            waiting = asyncio.create_task(publisher.publish(Message("while it was away")))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            await asyncio.to_thread(rabbit.start)
            await asyncio.wait_for(waiting, 40)
            await until(lambda: "while it was away" in [message.content for message in taken], within=40)
        assert list(dict.fromkeys(message.content for message in taken)) == [*range(20), "while it was away"]


async def test_a_broker_that_is_away_is_waited_for_with_an_end(rabbit: Server, exchange: str) -> None:
    (nobody,) = free_ports(1)
    async with to(rabbit, exchange, server=f"amqp://127.0.0.1:{nobody}", publishWithin=0.3) as publisher:
        with pytest.raises(Waiting, match=r"AMQP_UNREACHABLE not confirmed within 0\.3 s"):
            await publisher.publish(Message("x"))
        assert publisher.state is ObjectState.STARTED


async def test_a_message_that_no_queue_takes_is_an_error_where_wanted(rabbit: Server, exchange: str) -> None:
    async with to(rabbit, exchange, mandatory=True) as publisher:
        with pytest.raises(Refused, match="AMQP_UNROUTABLE no queue takes messages of orders"):
            await publisher.publish(Message("x"))
    async with to(rabbit, exchange) as publisher:
        await publisher.publish(Message("x"))


async def test_queues_of_others_can_be_used_by_name(rabbit: Server, exchange: str) -> None:
    other = await aio_pika.connect(host="127.0.0.1", port=rabbit.port)
    channel = await other.channel()
    queue = await channel.declare_queue(exchange, durable=True)
    async with to(rabbit, exchange, exchange="", topic=exchange, body="content") as publisher:
        await publisher.publish(Message({"t": 21.5}, "Reading"))
        found = await queue.get(timeout=5)
        assert (found.body, found.type, found.content_type) == (b'{"t":21.5}', "Reading", "application/json")
        await found.ack()
        await channel.default_exchange.publish(aio_pika.Message(b"plain", message_id="m-1"), exchange)
        async with receiving(publisher, Subscription(exchange)) as taken:
            await until(lambda: taken)
        assert (taken[0].content, taken[0].id) == ("plain", "m-1")
    await queue.delete(if_empty=False)
    await other.close()


async def test_wrong_credentials_fail_the_publisher(rabbit: Server, exchange: str) -> None:
    async with to(rabbit, exchange, user="guest", password="hunter2") as publisher:
        await until(lambda: publisher.state is ObjectState.ERRORED)
        assert "AMQP_DENIED" in publisher.cause
        assert "hunter2" not in publisher.cause


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"server": "http://a"}, "'server' must be amqp://HOST"),
        ({"server": "amqp://user:hunter2@a"}, "without credentials"),
        ({"topic": None}, "'topic'"),
    ],
)
async def test_wrong_settings_are_named(settings: dict[str, Any], why: str, rabbit: Server) -> None:
    with pytest.raises(SettingsError, match=why) as told:
        async with to(rabbit, "x", **settings):
            pass
    assert "hunter2" not in str(told.value)
