"""What a component says to the world."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


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
