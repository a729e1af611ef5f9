"""Pure: who subscribes to what, as Git says. The leader writes it to Consul, every agent reads it there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.errors import Invalid
from agent.sdk.message import Subscription

LIMIT = 48_000  # bytes of one part; values in Consul stay below 64 KiB


@dataclass(frozen=True, slots=True)
class Table:
    """Subscriptions by instance; `renamed` says what instances of another name are called now."""

    subscriptions: Mapping[str, tuple[Subscription, ...]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    def subscribers(self, topic: str, type: str) -> tuple[str, ...]:
        """The instances that get a message of this topic and type, sorted."""
        return tuple(
            name
            for name, wanted in sorted(self.subscriptions.items())
            if any(subscription.wants(topic, type) for subscription in wanted)
        )

    def with_local(self, local: Mapping[str, tuple[Subscription, ...]]) -> Table:
        """Also what this node was told to run: it may know more than what was read last."""
        merged = dict(self.subscriptions)
        for name, wanted in local.items():
            merged[name] = tuple(dict.fromkeys((*merged.get(name, ()), *wanted)))
        return Table(merged, self.renamed)

    def parts(self) -> tuple[bytes, ...]:
        """The table as values for Consul, none larger than 48 kB; the same bytes for the same table."""
        before = {now: old for old, now in self.renamed.items()}
        rows = [
            (name, [[s.topic, s.type] for s in wanted], *([before[name]] if name in before else []))
            for name, wanted in sorted(self.subscriptions.items())
        ]
        parts: list[list[Any]] = []
        size = LIMIT
        for row in rows:
            length = len(_text(row)) + 1
            if size + length > LIMIT:
                parts.append([])
                size = 0
            parts[-1].append(row)
            size += length
        return tuple(_text(part) for part in parts or [[]])


def table_of(parts: Iterable[bytes]) -> Table:
    """The table that `parts` made, or Invalid (TABLE_INVALID)."""
    found: dict[str, tuple[Subscription, ...]] = {}
    renamed: dict[str, str] = {}
    try:
        for part in parts:
            for name, wanted, *before in json.loads(part):
                renamed |= {str(old): str(name) for old in before}
                found[str(name)] = tuple(Subscription(str(topic), str(type_)) for topic, type_ in wanted)
    except (ValueError, TypeError, RecursionError) as error:
        raise Invalid("the table of subscriptions makes no sense", code="TABLE_INVALID") from error
    return Table(found, renamed)


def _text(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
