"""The embedded store's rows in the JSON of Consul's API, and requests in that JSON as rows."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from agent.consul.decode import NANOSECONDS, seconds
from agent.consul.embedded.state import SERF_HEALTH, Check, Entry, Event, Rejected, Service, Session
from agent.consul.embedded.store import Store
from agent.consul.embedded.txn import Op

DATACENTER = "dc1"
ADDRESS = "127.0.0.1"
NODE_ID = "00000000-0000-0000-0000-000000000001"


def entry(row: Entry) -> dict[str, Any]:
    shape = {
        "LockIndex": row.lock,
        "Key": row.key,
        "Flags": row.flags,
        "Value": base64.b64encode(row.value).decode() if row.value else None,
        "CreateIndex": row.create,
        "ModifyIndex": row.modify,
    }
    return {**shape, "Session": row.session} if row.session else shape


def session(row: Session) -> dict[str, Any]:
    return {
        "ID": row.id,
        "Name": row.name,
        "Node": row.node,
        "LockDelay": int(row.lock_delay * NANOSECONDS),
        "Behavior": row.behavior,
        "TTL": "" if row.ttl is None else f"{row.ttl:g}s",
        "NodeChecks": row.node_checks,
        "ServiceChecks": [{"ID": check, "Namespace": ""} for check in row.service_checks] or None,
        "CreateIndex": row.create,
        "ModifyIndex": row.modify,
    }


def service(row: Service) -> dict[str, Any]:
    """As the agent shows it, and inside health answers."""
    return {
        "ID": row.id,
        "Service": row.name,
        "Tags": row.tags,
        "Meta": row.meta,
        "Port": row.port,
        "Address": row.address,
        "Weights": {"Passing": 1, "Warning": 1},
        "EnableTagOverride": False,
        "CreateIndex": row.create,
        "ModifyIndex": row.modify,
    }


def catalog_service(store: Store, row: Service) -> dict[str, Any]:
    return {
        **_node_fields(store),
        "ServiceID": row.id,
        "ServiceName": row.name,
        "ServiceTags": row.tags,
        "ServiceAddress": row.address,
        "ServiceMeta": row.meta,
        "ServicePort": row.port,
        "ServiceWeights": {"Passing": 1, "Warning": 1},
        "ServiceEnableTagOverride": False,
        "CreateIndex": row.create,
        "ModifyIndex": row.modify,
    }


def node(store: Store) -> dict[str, Any]:
    return {**_node_fields(store), "Meta": {}, "CreateIndex": 1, "ModifyIndex": 1}


def _node_fields(store: Store) -> dict[str, Any]:
    return {
        "ID": NODE_ID,
        "Node": store.node,
        "Address": ADDRESS,
        "Datacenter": DATACENTER,
        "TaggedAddresses": {"lan": ADDRESS, "wan": ADDRESS},
        "NodeMeta": {},
    }


def check(store: Store, row: Check) -> dict[str, Any]:
    return {
        "Node": store.node,
        "CheckID": row.id,
        "Name": row.name,
        "Status": row.status,
        "Notes": row.notes,
        "Output": row.output,
        "ServiceID": row.service,
        "ServiceName": row.service_name,
        "ServiceTags": row.service_tags,
        "Type": row.kind,
        "Definition": {},
        "CreateIndex": row.create,
        "ModifyIndex": row.modify,
    }


def serf(store: Store) -> dict[str, Any]:
    """The node's own check, which every Consul shows: a process that answers is alive."""
    alive = Check(SERF_HEALTH, "Serf Health Status", "passing", "Agent alive and reachable", create=1, modify=1)
    return check(store, alive)


def health(store: Store, row: Service) -> dict[str, Any]:
    checks = [check(store, each) for each in store.checks.values() if each.service in ("", row.id)]
    return {"Node": node(store), "Service": service(row), "Checks": [serf(store), *checks]}


def event(row: Event) -> dict[str, Any]:
    return {
        "ID": row.id,
        "Name": row.name,
        "Payload": base64.b64encode(row.payload).decode() or None,
        "NodeFilter": "",
        "ServiceFilter": "",
        "TagFilter": "",
        "Version": 1,
        "LTime": row.time,
    }


# ------------------------------------------------------------------------------------------------------- requests


def fields(raw: Any, what: str) -> dict[str, Any]:
    """A JSON object with its names made comparable: Consul takes CheckID, check_id and checkid alike."""
    if not isinstance(raw, Mapping):
        raise Rejected(400, f"Request decode failed: {what} is not an object")
    return {str(name).replace("_", "").lower(): value for name, value in raw.items() if value is not None}


def time(value: Any, name: str) -> float | None:
    """A duration in Go's notation or as a number (nanoseconds), in seconds; None when it is not given."""
    if value in (None, "", 0):
        return None
    try:
        return seconds(value) if isinstance(value, str) else float(value) / NANOSECONDS
    except (TypeError, ValueError) as error:
        raise Rejected(400, f"Request decode failed: {name}: {error}") from error


def check_request(raw: Any, service_id: str, number: int = 0) -> Check:
    """A check of a registration. Raises Rejected for kinds the embedded server does not run."""
    given = fields(raw, "check")
    for kind in ("args", "script", "tcp", "udp", "grpc", "dockercontainerid", "h2ping", "osservice"):
        if given.get(kind):
            raise Rejected(400, f"the embedded Consul runs TTL, HTTP and alias checks only, not {kind!r}")
    if not (given.get("ttl") or given.get("http") or given.get("aliasservice")):
        raise Rejected(400, "Invalid check: TTL, HTTP or AliasService must be given")
    default = f"service:{service_id}" + (f":{number}" if number else "") if service_id else str(given.get("name", ""))
    name = str(given.get("name") or (f"Service '{service_id}' check" if service_id else default))
    return Check(
        id=str(given.get("checkid") or given.get("id") or default),
        name=name,
        status=str(given.get("status") or "critical"),
        notes=str(given.get("notes", "")),
        service=service_id or str(given.get("serviceid", "")),
        ttl=time(given.get("ttl"), "TTL"),
        alias=str(given["aliasservice"]) if given.get("aliasservice") else None,
        http=str(given["http"]) if given.get("http") else None,
        method=str(given.get("method") or "GET"),
        header={str(key): [str(each) for each in values] for key, values in (given.get("header") or {}).items()},
        interval=max(1.0, time(given.get("interval"), "Interval") or 10.0),
        timeout=time(given.get("timeout"), "Timeout") or 10.0,
        deregister_after=time(given.get("deregistercriticalserviceafter"), "DeregisterCriticalServiceAfter"),
    )


def service_request(raw: Any) -> tuple[Service, list[Check]]:
    given = fields(raw, "service")
    if not given.get("name"):
        raise Rejected(400, "Missing service name")
    row = Service(
        id=str(given.get("id") or given["name"]),
        name=str(given["name"]),
        address=str(given.get("address", "")),
        port=int(given.get("port", 0)),
        tags=[str(tag) for tag in given.get("tags", ())],
        meta={str(key): str(value) for key, value in fields_as_they_are(given.get("meta", {})).items()},
    )
    listed = list(given.get("checks") or ()) + ([given["check"]] if given.get("check") else [])
    many = len(listed) > 1
    return row, [check_request(each, row.id, at + 1 if many else 0) for at, each in enumerate(listed)]


def fields_as_they_are(raw: Any) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise Rejected(400, "Request decode failed: Meta is not an object")
    return raw


def txn_request(raw: Any) -> list[Op]:
    if not isinstance(raw, list):
        raise Rejected(400, "Failed to parse body: a list of operations is expected")
    ops = []
    for each in raw:
        kv = fields(each, "operation").get("kv")
        if kv is None:
            raise Rejected(400, "the embedded Consul has KV operations only")
        given = fields(kv, "KV")
        try:
            value = base64.b64decode(given.get("value", ""), validate=True)
        except ValueError as error:
            raise Rejected(400, f"Failed to parse body: {error}") from error
        ops.append(
            Op(
                verb=str(given.get("verb", "")),
                key=str(given.get("key", "")),
                value=value,
                flags=int(given.get("flags", 0)),
                index=int(given.get("index", 0)),
                session=str(given.get("session", "")),
            )
        )
    return ops
