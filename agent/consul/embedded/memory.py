"""PUBLIC: the Consul Protocol directly on a store in this process, for simulated fleets on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from agent.consul import protocol
from agent.consul.blocking import next_index
from agent.consul.embedded import shapes
from agent.consul.embedded.base import Kind
from agent.consul.embedded.state import Check, Entry, Rejected, Service
from agent.consul.embedded.store import Store
from agent.consul.embedded.txn import Op, TxnFailed
from agent.consul.embedded.waiting import until_changed
from agent.consul.errors import UNAVAILABLE, Answered, meaning
from agent.consul.protocol import CheckGone, CheckHealth, KeyValue, ServiceHealth, SessionGone, SessionInfo, TxnRefused
from agent.errors import Missing, Waiting
from agent.keys import CLUSTER_META, ROOT

T = TypeVar("T")


class MemoryConsul:
    """One client of a store; several may share it. While `cut` is true every call, also a waiting one, raises Waiting."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._cut = False
        self._waiting: dict[asyncio.Event, None] = {}  # in order, so that a simulation is the same each time

    @property
    def cut(self) -> bool:
        return self._cut

    @cut.setter
    def cut(self, cut: bool) -> None:
        self._cut = cut
        for event in tuple(self._waiting):
            event.set()

    async def get(self, key: str) -> KeyValue | None:
        return self._do(f"read {key}", lambda store: _key(store, key))

    async def get_all(self, prefix: str) -> tuple[KeyValue, ...]:
        return self._do(f"read keys below {prefix}", lambda store: tuple(map(_key_value, store.below(prefix))))

    async def put(self, key: str, value: bytes, *, cas: int | None = None) -> bool:
        return self._do(f"write {key}", lambda store: store.put(key, value, cas=cas))

    async def delete(self, key: str, *, cas: int | None = None, recurse: bool = False) -> bool:
        if recurse:
            self._do(f"delete {key}", lambda store: store.delete_tree(key))
            return True
        return self._do(f"delete {key}", lambda store: store.delete(key, cas))

    async def acquire(self, key: str, value: bytes, session: str) -> bool:
        return self._do(f"lock {key}", lambda store: store.acquire(key, value, session))

    async def release(self, key: str, value: bytes, session: str) -> bool:
        return self._do(f"unlock {key}", lambda store: store.release(key, value, session))

    async def txn(self, ops: Sequence[protocol.TxnOp]) -> tuple[KeyValue, ...]:
        wanted = [Op(op.verb, op.key, op.value or b"", index=op.index or 0, session=op.session or "") for op in ops]
        try:
            done = self._do("carry out a transaction", lambda store: store.transact(wanted))
        except TxnFailed as error:
            raise TxnRefused(f"cannot carry out a transaction: {error}") from error
        return tuple(map(_key_value, done))

    async def watch(self, key: str, index: int, wait: float) -> tuple[int, KeyValue | None]:
        return await self._wait(
            f"watch {key}",
            index,
            wait,
            lambda kind, name: kind == "kv" and name == key,
            lambda: self.store.key_index(key),
            lambda: _key(self.store, key),
        )

    async def watch_all(self, prefix: str, index: int, wait: float) -> tuple[int, tuple[KeyValue, ...]]:
        return await self._wait(
            f"watch keys below {prefix}",
            index,
            wait,
            lambda kind, name: kind == "kv" and name.startswith(prefix),
            lambda: self.store.prefix_index(prefix),
            lambda: tuple(map(_key_value, self.store.below(prefix))),
        )

    async def session_create(
        self,
        name: str,
        *,
        ttl: float | None,
        lock_delay: float,
        behavior: Literal["release", "delete"] = "release",
        service_checks: Sequence[str] = (),
    ) -> str:
        session = self._do(
            f"create session {name}",
            lambda store: store.create_session(
                name,
                ttl=ttl,
                lock_delay=lock_delay,
                behavior=behavior,
                node_checks=[],
                service_checks=list(service_checks),
            ),
        )
        return session.id

    async def session_renew(self, session: str) -> None:
        try:
            self._do(f"renew session {session}", lambda store: store.renew_session(session))
        except Missing as error:
            raise SessionGone(error.detail) from error

    async def session_destroy(self, session: str) -> None:
        self._do(f"end session {session}", lambda store: store.destroy_session(session))

    async def session_info(self, session: str) -> SessionInfo | None:
        held = self._do(f"read session {session}", lambda store: store.sessions.get(session))
        if held is None:
            return None
        return SessionInfo(held.id, held.name, held.node, held.ttl, held.lock_delay, held.behavior)

    async def register(self, service: protocol.Service) -> None:
        row = Service(service.id, service.name, service.address, service.port, list(service.tags), dict(service.meta))
        checks = [
            Check(
                check.id,
                check.name,
                check.status,
                notes=check.notes,
                service=service.id,
                ttl=check.ttl,
                alias=check.alias_service,
                deregister_after=check.deregister_after,
            )
            for check in service.checks
        ]
        self._do(f"register {service.id}", lambda store: store.register(row, checks, replace_checks=True))

    async def deregister(self, service_id: str) -> None:
        self._do(f"deregister {service_id}", lambda store: store.deregister(service_id))

    async def check_update(self, check_id: str, status: protocol.CheckState, output: str) -> None:
        try:
            self._do(f"update check {check_id}", lambda store: store.update_check(check_id, status, output))
        except Missing as error:
            raise CheckGone(error.detail) from error

    async def local_services(self) -> Mapping[str, protocol.Service]:
        rows = self._do("list this Consul agent's services", lambda store: list(store.services.values()))
        return {
            row.id: protocol.Service(row.id, row.name, row.address, row.port, tuple(row.tags), dict(row.meta))
            for row in rows
        }

    async def watch_service(
        self, name: str, cluster: str, index: int, wait: float
    ) -> tuple[int, tuple[ServiceHealth, ...]]:
        def content() -> tuple[ServiceHealth, ...]:
            rows = [each for each in self.store.services.values() if each.name == name]
            mine = [each for each in rows if each.meta.get(CLUSTER_META) == cluster]
            checks: dict[str, list[Check]] = {}
            for check in self.store.checks.values():
                checks.setdefault(check.service, []).append(check)
            return tuple(self._health(each, checks.get(each.id, [])) for each in sorted(mine, key=lambda each: each.id))

        index_now = lambda: self.store.names.get(name, 1)  # noqa: E731
        return await self._wait(f"watch service {name}", index, wait, _catalog, index_now, content)

    async def watch_checks(self, cluster: str, index: int, wait: float) -> tuple[int, tuple[CheckHealth, ...]]:
        def content() -> tuple[CheckHealth, ...]:
            mine = [each for each in self.store.checks.values() if each.service.startswith(f"{ROOT}{cluster}/")]
            return tuple(self._check(each) for each in sorted(mine, key=lambda each: each.id))

        index_now = lambda: self.store.catalog_index  # noqa: E731
        return await self._wait(f"watch checks of {cluster}", index, wait, _catalog, index_now, content)

    async def leader(self) -> str:
        return self._do("ask for the leader", lambda store: f"{store.node}:0")

    async def describe(self) -> str:
        return self._do("ask Consul who it is", lambda store: f"Consul in memory, node {store.node}")

    async def close(self) -> None:
        return

    # --- how every call goes ------------------------------------------------------------------------------------

    def _do(self, doing: str, work: Callable[[Store], T]) -> T:
        self._reachable(doing)
        self.store.advance()
        try:
            done = work(self.store)
        except Rejected as error:
            raise meaning(doing, Answered(error.status, error.text)) from error
        finally:
            self.store.take_changes()  # nothing is kept on disk here
        return done

    async def _wait(
        self,
        doing: str,
        index: int,
        wait: float,
        relevant: Callable[[Kind, str], bool],
        current: Callable[[], int],
        content: Callable[[], T],
    ) -> tuple[int, T]:
        self._reachable(doing)
        waker = asyncio.Event()
        self._waiting[waker] = None
        try:
            await until_changed(
                self.store, relevant, current, index, wait, waker=waker, interrupted=self._interruption()
            )
        finally:
            self._waiting.pop(waker, None)
        self._reachable(doing)
        return next_index(index, current()), content()

    def _interruption(self) -> Callable[[], bool]:
        """Says whether who begins to wait now is answered although nothing changed."""
        return lambda: self._cut

    def _reachable(self, doing: str) -> None:
        if self._cut:
            raise Waiting(f"cannot {doing}: Consul does not answer", code=UNAVAILABLE)

    def _health(self, row: Service, checks: list[Check]) -> ServiceHealth:
        return ServiceHealth(
            id=row.id,
            name=row.name,
            node=self.store.node,
            address=row.address or shapes.ADDRESS,
            port=row.port,
            tags=tuple(row.tags),
            meta=dict(row.meta),
            checks=tuple(self._check(each) for each in checks),
        )

    def _check(self, row: Check) -> CheckHealth:
        return CheckHealth(
            row.id, row.name, row.status, row.output, row.notes, row.service, row.service_name, self.store.node
        )


def _catalog(kind: Kind, name: str) -> bool:
    return kind in ("service", "check", "name")


def _key(store: Store, key: str) -> KeyValue | None:
    return _key_value(store.entries[key]) if key in store.entries else None


def _key_value(row: Entry) -> KeyValue:
    return KeyValue(row.key, row.value, row.create, row.modify, row.lock, row.session or None, row.flags)
