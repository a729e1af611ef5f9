"""What authors rely on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agent.sdk import (
    Component,
    Message,
    MessageInvalid,
    ObjectState,
    Settings,
    SettingsError,
    Subscription,
    derived_id,
    periodic,
)


@pytest.mark.parametrize(
    ("call", "value", "expected"),
    [
        ("text", "x", "x"),
        ("text", 7, "7"),
        ("integer", "8192", 8192),
        ("integer", 3, 3),
        ("number", "1.5", 1.5),
        ("flag", "false", False),
        ("flag", "Yes", True),
        ("flag", True, True),
        ("seconds", 3, 3.0),
        ("seconds", "5m", 300.0),
        ("seconds", "250ms", 0.25),
        ("path", "/srv/in", Path("/srv/in")),
    ],
)
def test_settings_are_read_by_type(call: str, value: object, expected: object) -> None:
    assert getattr(Settings({"key": value}), call)("key") == expected


@pytest.mark.parametrize(
    ("call", "value"),
    [
        ("text", []),
        ("text", True),
        ("integer", "x"),
        ("integer", 1.5),
        ("integer", True),
        ("number", "nan"),
        ("number", None),
        ("flag", "maybe"),
        ("seconds", "5 years"),
        ("seconds", -1),
        ("path", ""),
        ("path", "a\0b"),
    ],
)
def test_a_wrong_setting_is_named(call: str, value: object) -> None:
    with pytest.raises(SettingsError, match="'key'"):
        getattr(Settings({"key": value}, "pkg@1.0.0"), call)("key")


def test_a_missing_setting_is_named_or_has_a_default() -> None:
    settings = Settings({}, "pkg@1.0.0")
    with pytest.raises(SettingsError, match=r"pkg@1.0.0: SETTING_MISSING the setting 'size' is missing"):
        settings.integer("size")
    assert settings.integer("size", 5) == 5
    assert settings.path("file", None) is None
    assert "secret" not in repr(Settings({"token": "secret"}))


class Wanted(BaseModel):
    size: int
    name: str = "x"


def test_settings_fill_a_model() -> None:
    assert Settings({"size": "3"}).into(Wanted) == Wanted(size=3)
    with pytest.raises(SettingsError, match="size: Input should be a valid integer"):
        Settings({"size": "three"}).into(Wanted)


def test_a_message_travels_as_json() -> None:
    message = Message(content={"a": 1}, type="T", source="s", correlation_id="c")
    read = json.loads(message.to_json())
    assert read["content"] == {"a": 1}
    assert read["correlationId"] == "c"
    assert read["timestamp"].endswith("+00:00")
    assert Message().id != Message().id

    assert Message.from_json(message.to_json()) == message


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[]", "JSON object"),
        ("{", "JSON text"),
        ('{"id": 1, "properties": {"a": 1}}', "wrong in a message: id, properties"),
        ('{"timestamp": "yesterday"}', "timestamp"),
    ],
)
def test_what_is_no_message_is_refused(text: str, wrong: str) -> None:
    with pytest.raises(MessageInvalid, match=wrong):
        Message.from_json(text)
    assert Message.from_json('{"content": [1], "colour": "red"}').content == [1]


def test_subscriptions_and_derived_ids() -> None:
    assert Subscription("files").wants("files", "Anything")
    assert Subscription("files", "New").wants("files", "New")
    assert not Subscription("files", "New").wants("files", "Old")
    assert not Subscription("files").wants("orders", "New")
    assert derived_id("a", "b") == derived_id("a", "b") != derived_id("ab")
    assert len(derived_id("a")) == 32


class Part(Component):
    async def start(self) -> None:
        self.spawn(self.work(), name="work")

    async def work(self) -> None:
        raise RuntimeError("no\nmore paper")


async def test_a_broken_task_fails_its_owner() -> None:
    part = Part()
    await part.start()
    async with asyncio.timeout(5):
        while part.state is not ObjectState.ERRORED:
            await asyncio.sleep(0)
    assert part.cause == "RuntimeError: no more paper"
    assert part.name == "Part"


async def test_periodic_work_comes_back_and_its_error_comes_out() -> None:
    seen: list[Any] = []

    async def tick() -> None:
        seen.append(1)
        if len(seen) == 3:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        await asyncio.wait_for(periodic(tick, 0.001, at_once=True), 5)
    assert len(seen) == 3
