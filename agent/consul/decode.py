"""Consul's JSON as our values, and our values as Consul's JSON."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

from agent.consul.protocol import Check, CheckHealth, KeyValue, Service, ServiceHealth, SessionInfo, TxnOp
from agent.errors import Waiting

T = TypeVar("T")
NANOSECONDS = 1_000_000_000
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")


def duration(seconds: float) -> str:
    """Seconds in Go's notation, exact to the millisecond."""
    return f"{round(seconds * 1000)}ms"


def seconds(text: str) -> float:
    """Go's notation ("1m30s", "10s", "100ms") in seconds. Raises ValueError."""
    if text in ("", "0"):
        return 0.0
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration")
    return float(sum(float(number) * _UNITS[unit] for number, unit in parts))


def _sensible(read: Callable[[Mapping[str, Any]], T]) -> Callable[[Mapping[str, Any]], T]:
    """Turn an answer without the expected shape into Waiting: nothing is known then."""

    @wraps(read)
    def reading(raw: Mapping[str, Any]) -> T:
        try:
            return read(raw)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Waiting(f"an answer of Consul makes no sense: no {error}", code="CONSUL_UNAVAILABLE") from error

    return reading


@_sensible
def key_value(raw: Mapping[str, Any]) -> KeyValue:
    """A key; its value may be decoded already (py-consul does so for reads, not for transactions)."""
    value = raw.get("Value")
    return KeyValue(
        key=raw["Key"],
        value=base64.b64decode(value) if isinstance(value, str) else value or b"",
        create_index=raw["CreateIndex"],
        modify_index=raw["ModifyIndex"],
        lock_index=raw.get("LockIndex", 0),
        session=raw.get("Session") or None,
        flags=raw.get("Flags", 0),
    )


def txn_op(op: TxnOp) -> dict[str, Any]:
    kv: dict[str, Any] = {"Verb": op.verb, "Key": op.key}
    if op.value is not None:
        kv["Value"] = base64.b64encode(op.value).decode()
    if op.index is not None:
        kv["Index"] = op.index
    if op.session is not None:
        kv["Session"] = op.session
    return {"KV": kv}


@_sensible
def session_info(raw: Mapping[str, Any]) -> SessionInfo:
    return SessionInfo(
        id=raw["ID"],
        name=raw.get("Name") or "",
        node=raw.get("Node") or "",
        ttl=seconds(raw.get("TTL") or "") or None,
        lock_delay=raw.get("LockDelay", 0) / NANOSECONDS,
        behavior=raw.get("Behavior") or "release",
    )


def check_definition(check: Check) -> dict[str, Any]:
    """One check as the agent's registration wants it."""
    if (check.ttl is None) == (check.alias_service is None):
        raise ValueError(f"check {check.id} needs exactly one of ttl and alias_service")
    definition: dict[str, Any] = {"CheckID": check.id, "Name": check.name, "Notes": check.notes, "Status": check.status}
    if check.ttl is not None:
        definition["TTL"] = duration(check.ttl)
    else:
        definition["AliasService"] = check.alias_service
    if check.deregister_after is not None:
        definition["DeregisterCriticalServiceAfter"] = duration(check.deregister_after)
    return definition


@_sensible
def local_service(raw: Mapping[str, Any]) -> Service:
    return Service(
        id=raw["ID"],
        name=raw["Service"],
        address=raw.get("Address") or "",
        port=raw.get("Port") or 0,
        tags=tuple(raw.get("Tags") or ()),
        meta=dict(raw.get("Meta") or {}),
    )


@_sensible
def check_health(raw: Mapping[str, Any]) -> CheckHealth:
    return CheckHealth(
        id=raw["CheckID"],
        name=raw.get("Name") or "",
        status=raw.get("Status") or "",
        output=raw.get("Output") or "",
        notes=raw.get("Notes") or "",
        service_id=raw.get("ServiceID") or "",
        service_name=raw.get("ServiceName") or "",
        node=raw.get("Node") or "",
    )


@_sensible
def service_health(raw: Mapping[str, Any]) -> ServiceHealth:
    """One entry; an empty service address means the node's, as everywhere in Consul."""
    node, service = raw["Node"], raw["Service"]
    return ServiceHealth(
        id=service["ID"],
        name=service["Service"],
        node=node["Node"],
        address=service.get("Address") or node.get("Address") or "",
        port=service.get("Port") or 0,
        tags=tuple(service.get("Tags") or ()),
        meta=dict(service.get("Meta") or {}),
        checks=tuple(check_health(check) for check in raw.get("Checks") or ()),
    )
