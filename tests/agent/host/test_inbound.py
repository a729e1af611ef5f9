"""Messages on their way to a component, with a publisher whose transport delivers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from agent.errors import TdieError, Waiting
from agent.host import inbound, members
from agent.host.host import Host
from agent.host.states import HostState
from agent.keeper import codec
from agent.keeper.protocol import Code, HostOrder
from agent.sdk import Message
from agent.tasks import end_all

_NUMBERS = count()
SOURCE = """
import asyncio
from agent.sdk import Component, Message, MessagePublisher, Subscription

class Works(Component):
    async def start(self): self.got, self.fails, self.gate = [], 0, None
    async def stop(self): self.got.append("stop")
    async def receive(self, message):
        self.got.append(message.id)
        if self.gate is not None:
            await self.gate.wait()
        if self.fails:
            self.fails -= 1
            raise OSError("no disk")
        self.got.append("done " + message.id)

class Deaf(Component):
    async def start(self): ...

class Says(Works):
    def __init__(self, publisher: MessagePublisher): self.publisher = publisher
    async def receive(self, message): await self.publisher.publish(Message("answer"))

class Broker(MessagePublisher):
    async def start(self): self.asked, self.sent = {}, []
    async def publish(self, message): self.sent.append(message)
    async def subscribe(self, subscription, deliver):
        self.asked[subscription.topic, subscription.type] = deliver
        await asyncio.Event().wait()

class Loses(Broker):
    async def subscribe(self, subscription, deliver):
        for _ in range(self.losses):
            try:
                await super().subscribe(subscription, deliver)
            except asyncio.CancelledError:
                pass  # as asyncio.wait_for does when its result comes at the same moment
        await super().subscribe(subscription, deliver)

class LosesOne(Loses): losses = 1

class LosesAll(Loses): losses = 7

class OneWay(MessagePublisher):
    async def start(self): ...
    async def publish(self, message): ...

class Ends(Broker):
    async def subscribe(self, subscription, deliver): ...
"""


@pytest.fixture
def module(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    name = f"tdie_inbound_test_{next(_NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    before = list(sys.path)
    yield tmp_path, name
    sys.path[:] = before
    sys.modules.pop(name, None)


def _host(module: tuple[Path, str], component: str = "Works", publisher: str = "Broker") -> Host:
    root, name = module
    way = Code("ways", "1.0.0", "d", str(root), f"{name}:{publisher}")
    code = Code("parts", "1.0.0", "d", str(root), f"{name}:{component}")
    subscriptions = (("orders", "New"), ("orders", "Old"))
    order = HostOrder("a.0", "a", "n", "s1", "python", code, publisher=way, subscriptions=subscriptions)
    assert codec.order_from(codec.read_object(codec.order_text(order))) == order
    return Host(order, lambda: None)


async def _asked(host: Host) -> Any:
    assert host.members is not None
    asked: dict[Any, Any] = host.members.publisher.asked  # type: ignore[union-attr]
    async with asyncio.timeout(5):
        while len(asked) < 2:
            await asyncio.sleep(0)
    return asked


def _got(host: Host) -> list[str]:
    assert host.members is not None
    got: list[str] = host.members.component.got  # type: ignore[attr-defined]
    return got


async def test_each_subscription_is_asked_for_and_messages_come_one_at_a_time(module: tuple[Path, str]) -> None:
    host = _host(module)
    await host.start()
    asked = await _asked(host)
    component: Any = host.members.component  # type: ignore[union-attr]
    component.gate = asyncio.Event()
    first = asyncio.create_task(asked["orders", "New"](Message(id="1")))
    second = asyncio.create_task(asked["orders", "Old"](Message(id="2")))
    async with asyncio.timeout(5):
        while not _got(host):
            await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert _got(host) == ["1"]
    component.gate.set()
    await asyncio.gather(first, second)
    assert _got(host) == ["1", "done 1", "2", "done 2"]
    await host.destroy()


async def test_an_error_of_the_component_reaches_who_delivers(module: tuple[Path, str]) -> None:
    host = _host(module)
    await host.start()
    asked = await _asked(host)
    host.members.component.fails = 1  # type: ignore[union-attr]
    with pytest.raises(OSError, match="no disk"):
        await asked["orders", "New"](Message(id="1"))
    await asked["orders", "New"](Message(id="1"))
    assert host.state is HostState.STARTED
    assert _got(host) == ["1", "1", "done 1"]
    await host.destroy()


async def test_a_stop_waits_for_the_message_being_worked_on_and_takes_no_other(module: tuple[Path, str]) -> None:
    host = _host(module)
    await host.start()
    asked = await _asked(host)
    component: Any = host.members.component  # type: ignore[union-attr]
    component.gate = asyncio.Event()
    busy = asyncio.create_task(asked["orders", "New"](Message(id="1")))
    async with asyncio.timeout(5):
        while not component.got:
            await asyncio.sleep(0)
    stopping = asyncio.create_task(host.stop())
    await asyncio.sleep(0)
    late = asyncio.create_task(asked["orders", "Old"](Message(id="2")))
    component.gate.set()
    await busy
    with pytest.raises(Waiting, match="STOPPING"):
        await late
    await stopping
    assert component.got == ["1", "done 1", "stop"]


@pytest.mark.parametrize("publisher", ["LosesOne", "LosesAll"])
async def test_a_transport_that_does_not_hear_that_it_ends_holds_nobody_up(
    module: tuple[Path, str], publisher: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inbound, "ENDED_WITHIN", 0.1)
    monkeypatch.setattr(members, "TASKS_END_WITHIN", 0.1)
    host = _host(module, publisher=publisher)
    await host.start()
    await _asked(host)
    async with asyncio.timeout(5):
        await host.destroy()
    assert host.state is HostState.DESTROYED
    assert ("subscribe does not end when cancelled" in caplog.text) == (publisher == "LosesAll")
    for _ in range(4):  # a test leaves no task behind
        await end_all(asyncio.all_tasks() - {asyncio.current_task()}, 0.1)


async def test_what_is_published_meanwhile_carries_the_correlation_id(module: tuple[Path, str]) -> None:
    host = _host(module, "Says")
    await host.start()
    asked = await _asked(host)
    await asked["orders", "New"](Message(id="1", correlation_id="c7"))
    sent = host.members.publisher.sent  # type: ignore[union-attr]
    assert [(m.content, m.correlation_id, m.source) for m in sent] == [("answer", "c7", "a.0")]
    await host.destroy()


@pytest.mark.parametrize(
    ("component", "publisher", "code"), [("Deaf", "Broker", "RECEIVE_MISSING"), ("Works", "OneWay", "BUS_MISSING")]
)
async def test_what_cannot_be_subscribed_is_named(
    module: tuple[Path, str], component: str, publisher: str, code: str
) -> None:
    host = _host(module, component, publisher)
    with pytest.raises(TdieError) as caught:
        await host.start()
    assert (caught.value.code, host.state, host.final) == (code, HostState.ERRORED, True)


async def test_a_subscription_that_ends_is_a_failure(module: tuple[Path, str]) -> None:
    host = _host(module, publisher="Ends")
    await host.start()
    watch = asyncio.create_task(host.watch())
    async with asyncio.timeout(5):
        while host.state is not HostState.ERRORED:
            await asyncio.sleep(0)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    assert "SUBSCRIPTION_ENDED" in host.cause
