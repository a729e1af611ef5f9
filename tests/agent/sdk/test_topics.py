"""Where messages go, and what they are as bytes."""

from __future__ import annotations

from typing import Any

import pytest

from agent.sdk import Message, Settings, SettingsError, Topics, decoded, encoded


def test_the_first_route_of_a_type_holds_and_then_the_usual_topic() -> None:
    routes = [{"type": "A", "topic": "a"}, {"type": "A", "topic": "late"}, {"type": "B", "topic": "b"}]
    topics = Topics(Settings({"topic": "usual", "routes": routes}))
    assert [topics.of(Message(type=kind)) for kind in ("A", "B", "C", "")] == ["a", "b", "usual", "usual"]
    assert topics.all == ("a", "b", "usual")
    with pytest.raises(SettingsError, match="NO_ROUTE no route for messages of type 'C'"):
        Topics(Settings({"routes": routes})).of(Message(type="C"))


@pytest.mark.parametrize(
    "settings", [{}, {"topic": 1.5, "routes": 3}, {"routes": [{"type": "A"}]}, {"routes": ["A"]}, {"topic": []}]
)
def test_wrong_routes_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"'topic'|'routes"):
        Topics(Settings(settings))


def test_a_message_comes_back_as_it_went() -> None:
    message = Message({"a": "ü"}, "T", source="s", properties={"p": "1"}, correlation_id="c")
    assert decoded(encoded(message), "topic") == message


@pytest.mark.parametrize(
    ("payload", "content"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b"7", 7),
        (b"plain text", "plain text"),
        (b"\xff\x00", "/wA="),
        (b'{"id": 7, "type": "T", "content": 1}', {"id": 7, "type": "T", "content": 1}),
        (b"[" * 100_000, "[" * 100_000),
    ],
)
def test_what_others_wrote_becomes_content(payload: bytes, content: Any) -> None:
    message = decoded(payload, "orders", "the-id")
    assert (message.content, message.type, message.id, message.properties["topic"]) == (content, "", "the-id", "orders")
    assert message.properties.get("encoding") == ("base64" if payload[0] == 0xFF else None)


def test_content_can_go_alone() -> None:
    assert encoded(Message("text"), whole=False) == b"text"
    assert encoded(Message({"a": "ü"}), whole=False) == '{"a":"ü"}'.encode()
