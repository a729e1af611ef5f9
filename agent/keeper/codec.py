"""Orders, rows and lines as bytes and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from agent.errors import Invalid
from agent.keeper.protocol import Code, HostOrder, HostRow, Lease

MAX_LINE = 32 << 20
_ORDER = {f.name: f for f in dataclasses.fields(HostOrder)}
_CODE = {f.name for f in dataclasses.fields(Code)}
_LEASE = {f.name for f in dataclasses.fields(Lease)}
_LATER = frozenset(
    {"python", "subscriptions", "bus", "data", "check_interval", "check_timeout", "lease", "awaiting"}
)  # left out while empty: a keeper from before them obeys the order
_TEXTS = (
    "replica", "instance", "node", "spec_hash", "runtime", "bus", "log", "data", "restart_mode", "correlation_id",
    "python",
)  # fmt: skip
_NUMBERS = (
    "port",
    "stop_grace",
    "restart_attempts",
    "restart_interval",
    "restart_delay",
    "check_interval",
    "check_timeout",
)


class VersionSkew(Invalid):
    """The other side is newer than this one: obeying half of what it says could be wrong."""

    code = "VERSION_SKEW"


class Lines:
    """Turns received bytes into JSON objects, one a line; `held` is the beginning of a line that was received before."""

    def __init__(self, held: bytes = b"") -> None:
        self._held = bytearray(held)

    @property
    def held(self) -> bytes:
        """The beginning of a line whose end has not arrived."""
        return bytes(self._held)

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The objects completed by these bytes. Invalid for a line that is no JSON object or longer than 32 MiB."""
        self._held += data
        if b"\n" not in data:
            if len(self._held) > MAX_LINE:
                raise Invalid(f"a line is longer than {MAX_LINE} bytes", code="LINE_TOO_LONG")
            return []
        *whole, rest = self._held.split(b"\n")
        self._held = bytearray(rest)
        return [read_object(line) for line in whole if line.strip()]


def read_object(line: bytes | bytearray | str) -> dict[str, Any]:
    """The JSON object a line spells, or Invalid."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Invalid("a line is no JSON", code="NO_JSON") from error
    if not isinstance(found, dict):
        raise Invalid("a line is no JSON object", code="NO_JSON")
    return found


def line(value: Mapping[str, Any]) -> bytes:
    """One JSON object as one line."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def order_text(order: HostOrder) -> str:
    """The JSON of an order; made once per order, because rows and the state file repeat it."""
    plain = {name: value for name in _ORDER if (value := getattr(order, name)) or name not in _LATER}
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Code):
        return {name: getattr(value, name) for name in _CODE}
    if isinstance(value, Lease):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot travel")


def order_from(raw: object) -> HostOrder:
    """The order of parsed JSON. VersionSkew for a field this keeper does not know, Invalid for a wrong or missing one."""
    given = _fields(raw, set(_ORDER), "order")
    try:
        given["component"] = _code(given["component"])
        publisher = given.get("publisher")
        given["publisher"] = None if publisher is None else _code(publisher)
        lease = given.get("lease")
        given["lease"] = None if lease is None else Lease(**_fields(lease, _LEASE, "lease"))
        given["command"] = tuple(given.get("command", ()))
        given["subscriptions"] = tuple((topic, type_) for topic, type_ in given.get("subscriptions", ()))
        order = HostOrder(**given)
    except (TypeError, KeyError, ValueError) as error:
        raise Invalid(f"the order is incomplete: {error}", code="ORDER_INVALID") from error
    _check(order)
    return order


def _code(raw: object) -> Code:
    return Code(**_fields(raw, _CODE, "code"))


def _fields(raw: object, known: set[str], what: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise Invalid(f"the {what} is no object", code="ORDER_INVALID")
    if unknown := sorted(set(raw) - known):
        raise VersionSkew(f"unknown fields in the {what}: {', '.join(unknown)}", hint="upgrade the keeper of this node")
    return dict(raw)


def _check(order: HostOrder) -> None:
    wrong = [name for name in _TEXTS if not isinstance(getattr(order, name), str)]
    wrong += [name for name in _NUMBERS if not is_number(getattr(order, name))]
    if not order.replica or "/" in order.replica or "\0" in order.replica or len(order.replica) > 255:
        wrong.append("replica")
    if order.runtime not in ("python", "exec") or (order.runtime == "exec" and not order.command):
        wrong.append("runtime" if order.runtime != "exec" else "command")
    if not all(isinstance(part, str) and "\0" not in part for part in order.command):
        wrong.append("command")
    if not all(isinstance(part, str) for subscription in order.subscriptions for part in subscription):
        wrong.append("subscriptions")
    if not isinstance(order.env, dict) or not all(_variable(k, v) for k, v in order.env.items()):
        wrong.append("env")
    if order.restart_mode not in ("fail", "delay"):
        wrong.append("restart_mode")
    if not order.component.content_root.startswith("/"):
        wrong.append("component.content_root")
    if order.awaiting not in (True, False):
        wrong.append("awaiting")
    if order.python and not order.python.startswith("/"):
        wrong.append("python")
    if order.lease is not None and not all(is_number(value) for value in dataclasses.astuple(order.lease)):
        wrong.append("lease")
    if not 0 <= order.port <= 65535:
        wrong.append("port")
    if wrong:
        raise Invalid(f"wrong in the order of {order.replica!r}: {', '.join(sorted(set(wrong)))}", code="ORDER_INVALID")


def is_number(value: object) -> bool:
    """Whether this is a number that is not negative."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _variable(key: object, value: object) -> bool:
    texts = isinstance(key, str) and isinstance(value, str)
    return texts and bool(key) and "=" not in str(key) and "\0" not in f"{key}{value}"


def row_from(raw: Mapping[str, Any]) -> HostRow:
    """The row of parsed JSON; fields a newer keeper added to it are left out, VersionSkew for those of its order."""
    known = {f.name for f in dataclasses.fields(HostRow)}
    given = {name: value for name, value in raw.items() if name in known}
    try:
        return HostRow(**{**given, "order": order_from(given.get("order"))})
    except VersionSkew as error:
        raise VersionSkew(f"the keeper is newer: {error.detail}", hint="upgrade the agent of this node") from error


def text(value: object) -> str:
    """Any JSON value, compact."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
