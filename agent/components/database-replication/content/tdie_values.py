"""Rows in a form that is the same whichever database they came from."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

_KINDS: dict[str, Any] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "decimal": Decimal,
    "uuid": uuid.UUID,
}


def canonical(value: Any) -> str:
    """A text that is equal for equal values: 1, 1.0, True and Decimal(1); times without a zone count as UTC."""
    match value:
        case None:
            return "-"
        case bool() | int():
            return f"n{int(value)}"
        case float() | Decimal():
            exact = Decimal(repr(value)) if isinstance(value, float) else value
            if not exact.is_finite():
                return f"n{exact}"
            return f"n{int(exact)}" if exact == exact.to_integral_value() else f"n{exact.normalize():f}"
        case datetime():
            aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
            return f"t{aware.astimezone(UTC).isoformat()}"
        case date() | time():
            return f"t{value.isoformat()}"
        case timedelta():
            return f"d{value.total_seconds()}"
        case bytes() | bytearray() | memoryview():
            return f"b{bytes(value).hex()}"
        case str() | uuid.UUID():
            return f"s{value}"
        case _:
            return f"j{json.dumps(value, sort_keys=True, default=str)}"


def digest(row: Sequence[Any]) -> bytes:
    """Of one row."""
    whole = hashlib.sha256()
    for value in row:
        text = canonical(value).encode()
        whole.update(len(text).to_bytes(8) + text)
    return whole.digest()


def together(digests: Iterable[bytes]) -> bytes:
    """Of a chunk, in the order of its rows."""
    whole = hashlib.sha256()
    for one in digests:
        whole.update(one)
    return whole.digest()


def to_text(values: Sequence[Any]) -> str:
    """Key or watermark values as JSON, for the state table. TypeError for a kind that no key should have."""
    return json.dumps([_plain(value) for value in values])


def from_text(text: str) -> tuple[Any, ...]:
    """What `to_text` was given."""
    return tuple(
        _KINDS[value["kind"]](value["text"]) if isinstance(value, dict) else value for value in json.loads(text)
    )


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    for kind, of in (("datetime", datetime), ("date", date), ("decimal", Decimal), ("uuid", uuid.UUID)):
        if isinstance(value, of):
            return {"kind": kind, "text": value.isoformat() if isinstance(value, date) else str(value)}
    raise TypeError(f"a {type(value).__name__} cannot be a key or watermark here")
