"""What an embedded Consul remembers: rows of plain values, each of which can be written as JSON and read back."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

SERF_HEALTH = "serfHealth"


class Rejected(Exception):
    """The store will not do this; status and sentence are those a real Consul answers with."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(slots=True)
class Row:
    """Something kept across restarts, except for the fields named in `VOLATILE`."""

    VOLATILE: ClassVar[tuple[str, ...]] = ()

    def body(self) -> dict[str, Any]:
        raw = {name: value for name, value in asdict(self).items() if name not in type(self).VOLATILE}
        return {name: _packed(value) for name, value in raw.items()}

    def same(self, other: Self) -> bool:
        """Whether both are kept as the same row."""
        return all(
            getattr(self, each.name) == getattr(other, each.name)
            for each in fields(self)
            if each.name not in type(self).VOLATILE
        )

    @classmethod
    def read(cls, body: dict[str, Any]) -> Self:
        """Raises KeyError or TypeError when the body is not one of these rows."""
        known = {each.name for each in fields(cls)}
        if not known.issuperset(body):
            raise KeyError(f"unknown fields {sorted(set(body) - known)}")
        return cls(**{name: _unpacked(value) for name, value in body.items()})


@dataclass(slots=True)
class Entry(Row):
    """One key."""

    key: str
    value: bytes
    flags: int = 0
    create: int = 0
    modify: int = 0
    lock: int = 0
    session: str = ""


@dataclass(slots=True)
class Session(Row):
    """One session; `expires` is on the store's clock and starts again when the server does, as after a Raft election."""

    VOLATILE: ClassVar[tuple[str, ...]] = ("expires",)

    id: str
    name: str
    node: str
    ttl: float | None
    lock_delay: float
    behavior: str
    node_checks: list[str] = field(default_factory=list)
    service_checks: list[str] = field(default_factory=list)
    create: int = 0
    modify: int = 0
    expires: float | None = None


@dataclass(slots=True)
class Service(Row):
    """One service of this node."""

    id: str
    name: str
    address: str = ""
    port: int = 0
    tags: list[str] = field(default_factory=list)
    meta: dict[str, str] = field(default_factory=dict)
    create: int = 0
    modify: int = 0


@dataclass(slots=True)
class Check(Row):
    """One check, of a service or (with an empty `service`) of the node. Deadlines are on the store's clock."""

    VOLATILE: ClassVar[tuple[str, ...]] = ("expires", "critical_since")

    id: str
    name: str
    status: str = "critical"
    output: str = ""
    notes: str = ""
    service: str = ""
    service_name: str = ""
    service_tags: list[str] = field(default_factory=list)
    ttl: float | None = None
    alias: str | None = None
    http: str | None = None
    method: str = "GET"
    header: dict[str, list[str]] = field(default_factory=dict)
    interval: float = 10.0
    timeout: float = 10.0
    deregister_after: float | None = None
    create: int = 0
    modify: int = 0
    expires: float | None = None
    critical_since: float | None = None

    @property
    def kind(self) -> str:
        if self.ttl is not None:
            return "ttl"
        if self.alias is not None:
            return "alias"
        return "http" if self.http is not None else ""


@dataclass(slots=True)
class Event(Row):
    """One user event."""

    id: str
    name: str
    payload: bytes
    time: int = 0


def _packed(value: Any) -> Any:
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _unpacked(value: Any) -> Any:
    return base64.b64decode(value["b64"]) if isinstance(value, dict) and value.keys() == {"b64"} else value
