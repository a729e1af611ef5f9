"""What a component says to the world."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from agent.errors import Invalid

correlation: ContextVar[str] = ContextVar("correlation", default="")
"""The correlation id of what is being worked on here: that of the message a component receives."""


class MessageInvalid(Invalid):
    """What arrived is no message."""

    code = "MESSAGE_INVALID"


def derived_id(*parts: str) -> str:
    """32 hex digits that follow from `parts` alone: work done again publishes under the same id, and counts once."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _new_id() -> str:
    return uuid.uuid4().hex


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Message:
    """One message: `type` says what it is, `content` is text or any JSON value, `properties` are for routing and people.

    `source` is filled in by the host with the replica's name when it is left empty.
    """

    content: Any = ""
    type: str = ""
    source: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)
    correlation_id: str = ""
    id: str = field(default_factory=_new_id)
    timestamp: datetime = field(default_factory=_now)

    def to_dict(self) -> dict[str, Any]:
        """The message as JSON types, camelCase names, the time in ISO 8601."""
        return {
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "timestamp": self.timestamp.isoformat(),
            "content": self.content,
            "properties": dict(self.properties),
            "correlationId": self.correlation_id,
        }

    def to_json(self) -> str:
        """One line of JSON. TypeError when `content` is no JSON value."""
        return json.dumps(self.to_dict(), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_dict(cls, raw: object) -> Message:
        """The message that `to_dict` told; fields it does not know are left out. MessageInvalid names a wrong field."""
        if not isinstance(raw, Mapping):
            raise MessageInvalid("a message is a JSON object")
        texts = {name: raw.get(name, "") for name in ("id", "source", "type", "correlationId")}
        properties, stamp = raw.get("properties") or {}, raw.get("timestamp")
        wrong = [name for name, value in texts.items() if not isinstance(value, str)]
        if not isinstance(properties, Mapping) or not all(isinstance(value, str) for value in properties.values()):
            wrong.append("properties")
        try:
            timestamp = _now() if stamp is None else datetime.fromisoformat(stamp)
        except (TypeError, ValueError):
            wrong.append("timestamp")
        if wrong:
            raise MessageInvalid(f"wrong in a message: {', '.join(wrong)}")
        return cls(
            content=raw.get("content", ""),
            type=texts["type"],
            source=texts["source"],
            properties=dict(properties),
            correlation_id=texts["correlationId"],
            id=texts["id"] or _new_id(),
            timestamp=timestamp,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Message:
        """The message that `to_json` wrote, or MessageInvalid."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MessageInvalid("a message is JSON text") from error
        return cls.from_dict(raw)


@dataclass(frozen=True, slots=True)
class Subscription:
    """Messages to get: those of a topic, and with `type` only those of this type."""

    topic: str
    type: str = ""

    def wants(self, topic: str, type: str) -> bool:
        """Whether a message of this topic and type is subscribed to."""
        return topic == self.topic and self.type in ("", type)
