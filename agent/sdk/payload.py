"""Messages as bytes on the transport of others."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

from agent.sdk.message import Message, MessageInvalid

_OURS = frozenset({"id", "type", "content"})


def encoded(message: Message, whole: bool = True) -> bytes:
    """The message as JSON, or its content alone: a text as it is, anything else as JSON. TypeError for what is no JSON."""
    if whole:
        return message.to_json().encode()
    if isinstance(message.content, str):
        return message.content.encode()
    return json.dumps(message.content, ensure_ascii=False, separators=(",", ":")).encode()


def decoded(payload: bytes, topic: str, id: str = "") -> Message:
    """The message that `encoded` wrote whole; what others wrote becomes the content of a message without a type.

    Foreign content is JSON if it reads so, else text, else base64 (then the property `encoding` says so). Its `id` should
    be the same when the transport delivers it again. The property `topic` says where it came from.
    """
    value: Any = None
    try:
        value = text = payload.decode()
    except UnicodeDecodeError:
        more = {"topic": topic, "encoding": "base64"}
        return _foreign(base64.b64encode(payload).decode(), more, id)
    with contextlib.suppress(ValueError, RecursionError):  # then it is a text
        value = json.loads(text)
    if isinstance(value, dict) and value.keys() >= _OURS:
        with contextlib.suppress(MessageInvalid):  # then it only looks like one of ours
            return Message.from_dict(value)
    return _foreign(value, {"topic": topic}, id)


def _foreign(content: Any, properties: dict[str, str], id: str) -> Message:
    return Message(content, properties=properties, id=id) if id else Message(content, properties=properties)
