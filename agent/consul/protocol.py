"""PUBLIC: what controller and agent ask of Consul. One adapter speaks to a server; the simulator keeps it in memory.

Every method raises `Waiting` (not reachable, no leader, rate limited: nothing is known), `Denied` (token refused), or one of the
errors below. A read that fails never returns something empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from agent.errors import Missing, Refused

CheckState = Literal["passing", "warning", "critical"]


class SessionGone(Missing):
    """The session does not exist any more: what it held is lost."""

    code = "SESSION_GONE"


class CheckGone(Missing):
    """The check is not known to this Consul agent: register the service again."""

    code = "CHECK_GONE"


class TxnRefused(Refused):
    """A transaction was rolled back; nothing of it happened."""

    code = "TXN_REFUSED"


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as read. Indexes are Consul's Raft indexes; `lock_index` counts acquisitions."""

    key: str
    value: bytes
    create_index: int
    modify_index: int
    lock_index: int = 0
    session: str | None = None
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    """One TTL or alias check to register with a service. Exactly one of `ttl` (seconds) and `alias_service` is given."""

    id: str
    name: str
    ttl: float | None = None
    alias_service: str | None = None
    status: CheckState = "critical"
    notes: str = ""
    deregister_after: float | None = None  # seconds critical until Consul drops the service (at least 60)


@dataclass(frozen=True, slots=True)
class Service:
    """One service to register at the Consul agent this adapter talks to."""

    id: str
    name: str
    address: str = ""
    port: int = 0
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckHealth:
    """One check in the catalog."""

    id: str
    name: str
    status: str
    output: str
    notes: str
    service_id: str
    service_name: str
    node: str


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """One service entry in the catalog with its checks."""

    id: str
    name: str
    node: str
    address: str
    port: int
    tags: tuple[str, ...]
    meta: Mapping[str, str]
    checks: tuple[CheckHealth, ...]

    @property
    def passing(self) -> bool:
        return all(check.status == "passing" for check in self.checks)

    @property
    def critical(self) -> bool:
        return any(check.status == "critical" for check in self.checks)


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One live session."""

    id: str
    name: str
    node: str
    ttl: float | None
    lock_delay: float
    behavior: str


@dataclass(frozen=True, slots=True)
class TxnOp:
    """One operation of a transaction (Consul's verbs: set, cas, lock, unlock, get, check-session, check-index, delete…)."""

    verb: str
    key: str
    value: bytes | None = None
    index: int | None = None
    session: str | None = None


class Consul(Protocol):
    """One Consul, through the agent this process talks to."""

    # --- keys ---------------------------------------------------------------------------------------------------
    async def get(self, key: str) -> KeyValue | None:
        """The key as the leader has it now (consistent read), or None when it does not exist."""
        ...

    async def get_all(self, prefix: str) -> tuple[KeyValue, ...]:
        """All keys below a prefix, in order; empty when there are none."""
        ...

    async def put(self, key: str, value: bytes, *, cas: int | None = None) -> bool:
        """Write; with `cas` only if the modify index is still that (0: only if absent). False: it was not."""
        ...

    async def delete(self, key: str, *, cas: int | None = None, recurse: bool = False) -> bool: ...

    async def acquire(self, key: str, value: bytes, session: str) -> bool:
        """Take the lock; False when another session holds it or its lock-delay has not passed."""
        ...

    async def release(self, key: str, value: bytes, session: str) -> bool: ...

    async def txn(self, ops: Sequence[TxnOp]) -> tuple[KeyValue, ...]:
        """All or nothing, at most 64 operations; raises TxnRefused when a condition fails."""
        ...

    async def watch(self, key: str, index: int, wait: float) -> tuple[int, KeyValue | None]:
        """Wait up to `wait` seconds for the key to change after `index`; (new index, key). Index rules are applied."""
        ...

    async def watch_all(self, prefix: str, index: int, wait: float) -> tuple[int, tuple[KeyValue, ...]]: ...

    # --- sessions -----------------------------------------------------------------------------------------------
    async def session_create(
        self,
        name: str,
        *,
        ttl: float | None,
        lock_delay: float,
        behavior: Literal["release", "delete"] = "release",
        service_checks: Sequence[str] = (),
    ) -> str:
        """A new session's id. `NodeChecks` is always empty; `service_checks` are check ids that end it when critical."""
        ...

    async def session_renew(self, session: str) -> None:
        """Raises SessionGone when it is over."""
        ...

    async def session_destroy(self, session: str) -> None: ...

    async def session_info(self, session: str) -> SessionInfo | None: ...

    # --- services and checks at the local agent -----------------------------------------------------------------
    async def register(self, service: Service) -> None: ...

    async def deregister(self, service_id: str) -> None:
        """Gone afterwards, also if it was not there."""
        ...

    async def check_update(self, check_id: str, status: CheckState, output: str) -> None:
        """Beat or change a TTL check; raises CheckGone when this Consul does not know it."""
        ...

    async def local_services(self) -> Mapping[str, Service]:
        """What is registered at the local agent, by service id (without checks)."""
        ...

    # --- catalog and health -------------------------------------------------------------------------------------
    async def watch_service(
        self, name: str, cluster: str, index: int, wait: float
    ) -> tuple[int, tuple[ServiceHealth, ...]]:
        """All entries of a service of one cluster (filtered by meta `tdie-cluster`), healthy or not; blocking like `watch`."""
        ...

    async def watch_checks(self, cluster: str, index: int, wait: float) -> tuple[int, tuple[CheckHealth, ...]]:
        """All checks of services whose id starts with `tdie/<cluster>/`; blocking like `watch`."""
        ...

    # --- the server itself --------------------------------------------------------------------------------------
    async def leader(self) -> str:
        """Address of the Raft leader; raises Waiting when there is none."""
        ...

    async def describe(self) -> str:
        """One line for people: kind, version, node name, address."""
        ...

    async def close(self) -> None: ...
