"""The harness runs components as a host does, and fails where a host would."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from agent.components import folder
from agent.sdk import Component, InstanceId, Message, MessagePublisher, ObjectState, Settings, periodic
from agent.sdk.testing import publishing, running


class Greeter(Component):
    def __init__(
        self, settings: Settings, publisher: MessagePublisher, me: InstanceId, greeting: str = "Hello"
    ) -> None:
        self._text = f"{greeting}, {settings.text('name')}"
        self._publisher, self.me, self.lives = publisher, me, ["made"]

    async def start(self) -> None:
        self.lives.append("started")
        self.spawn(periodic(self._greet, 0.01, at_once=True), name="greet")

    async def _greet(self) -> None:
        await self._publisher.publish(Message(self._text, type="Greeting"))

    async def stop(self) -> None:
        self.lives.append("stopped")

    async def close(self) -> None:
        self.lives.append("closed")


async def test_a_component_runs_and_what_it_says_is_collected() -> None:
    async with running(Greeter, {"name": "you"}) as run:
        assert (await run.message("Greeting")).content == "Hello, you"
        await run.until(lambda: len(run.published) > 2)
        assert run.state is ObjectState.STARTED
        component = run.component
        assert isinstance(component, Greeter)
        assert len(component.me) == 32
    assert component.lives == ["made", "started", "stopped", "closed"]
    assert component.state is ObjectState.DESTROYED


async def test_constructor_arguments_can_be_given() -> None:
    async with running(Greeter, {"name": "you"}, greeting="Good morning") as run:
        assert (await run.message()).content == "Good morning, you"


async def test_a_refused_message_fails_the_task_that_published_it() -> None:
    async with running(Greeter, {"name": "you"}) as run:
        run.publisher.refuse(OSError("no way out"))
        await run.until(lambda: run.state is ObjectState.ERRORED)
        assert run.cause == "OSError: no way out"


async def test_a_message_that_does_not_come_is_an_assertion() -> None:
    async with running(Greeter, {"name": "you"}) as run:
        with pytest.raises(
            AssertionError, match=r"no message Farewell within 0.05 s; it is Started, said: \['Greeting"
        ):
            await run.message("Farewell", within=0.05)


class Leaky(Component):
    async def start(self) -> None:
        self.task = asyncio.create_task(asyncio.sleep(60), name="forgotten")


async def test_a_forgotten_task_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="tasks left behind after close: forgotten"):
        async with running(Leaky) as run:
            component = run.component
    assert isinstance(component, Leaky)
    component.task.cancel()


class Broken(Component):
    lives: list[str]

    async def start(self) -> None:
        Broken.lives = ["started"]
        raise OSError("no disk")

    async def stop(self) -> None:
        Broken.lives.append("stopped")

    async def close(self) -> None:
        Broken.lives.append("closed")


async def test_a_failed_start_comes_out_after_its_roll_back() -> None:
    with pytest.raises(OSError, match="no disk"):
        async with running(Broken):
            raise AssertionError("it runs")
    assert Broken.lives == ["started", "closed"]


class Echo(Component):
    def __init__(self, publisher: MessagePublisher) -> None:
        self._publisher = publisher

    async def start(self) -> None:
        (self.data_folder / "started").touch()

    async def receive(self, message: Message) -> None:
        if message.type == "Bad":
            raise ValueError("not this one")
        await self._publisher.publish(Message(message.content, type="Echo"))


async def test_messages_are_delivered_and_answers_belong_to_them(tmp_path: Path) -> None:
    async with running(Echo, name="echo.0", data=tmp_path / "own") as run:
        await run.deliver(Message("x", correlation_id="c1"))
        answer = await run.message("Echo")
        assert (answer.content, answer.correlation_id, answer.source) == ("x", "c1", "echo.0")
        with pytest.raises(ValueError, match="not this one"):
            await run.deliver(Message(type="Bad"))
    assert (tmp_path / "own" / "started").exists()


async def test_the_folder_of_a_package_and_a_publisher(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    async with publishing(folder("basic-publisher"), {"file": str(out)}) as publisher:
        await publisher.publish(Message("x", type="T"))
    assert json.loads(out.read_text())["type"] == "T"
