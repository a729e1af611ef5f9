"""Consul with all its troubles: cut off, answers that get lost, watches that are late, restarts that lose or restore data."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

from agent.clock import Monotonic
from agent.consul import protocol
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.consul.errors import UNAVAILABLE
from agent.consul.protocol import CheckHealth, KeyValue, ServiceHealth
from agent.errors import Waiting

T = TypeVar("T")

_STATE = ("index", "entries", "sessions", "tombs", "delays", "services", "checks", "names", "events",
          "session_index", "catalog_index", "event_index", "_sorted", "_due")  # fmt: skip
LATE = 1.0  # seconds between looks of a watch that asks a server which lags behind


class SimConsul(MemoryConsul):
    """One client of the simulated Consul. Watches may be answered by a server that lags behind; other reads are consistent."""

    def __init__(self, store: Store, *, called: Callable[[], None], wrote: Callable[[bytes], None]) -> None:
        """`called` is told of each call, `wrote` of every text that was written."""
        super().__init__(store)
        self._called = called
        self._wrote = wrote
        self.deaf = False  # what it asks is done, and it hears no answer
        self.behind: Store | None = None  # what its watches see
        self._restores = 0
        self.heard = Monotonic(-1e9)  # when the last call was sent that was answered

    def wake(self) -> None:
        """Everybody who waits looks again, as after a snapshot was restored."""
        self._restores += 1
        for event in tuple(self._waiting):
            event.set()

    async def put(self, key: str, value: bytes, *, cas: int | None = None) -> bool:
        self._wrote(value)
        return await super().put(key, value, cas=cas)

    async def acquire(self, key: str, value: bytes, session: str) -> bool:
        self._wrote(value)
        return await super().acquire(key, value, session)

    async def txn(self, ops: Sequence[protocol.TxnOp]) -> tuple[KeyValue, ...]:
        for op in ops:
            self._wrote(op.value or b"")
        return await super().txn(ops)

    async def register(self, service: protocol.Service) -> None:
        self._wrote(repr(service).encode())
        await super().register(service)

    async def check_update(self, check_id: str, status: protocol.CheckState, output: str) -> None:
        self._wrote(output.encode())
        await super().check_update(check_id, status, output)

    async def watch_all(self, prefix: str, index: int, wait: float) -> tuple[int, tuple[KeyValue, ...]]:
        if (late := await self._late(index, wait)) is not None:
            return await late.watch_all(prefix, index, wait)
        return await super().watch_all(prefix, index, wait)

    async def watch_service(
        self, name: str, cluster: str, index: int, wait: float
    ) -> tuple[int, tuple[ServiceHealth, ...]]:
        if (late := await self._late(index, wait)) is not None:
            return await late.watch_service(name, cluster, index, wait)
        return await super().watch_service(name, cluster, index, wait)

    async def watch_checks(self, cluster: str, index: int, wait: float) -> tuple[int, tuple[CheckHealth, ...]]:
        if (late := await self._late(index, wait)) is not None:
            return await late.watch_checks(cluster, index, wait)
        return await super().watch_checks(cluster, index, wait)

    async def _late(self, index: int, wait: float) -> MemoryConsul | None:
        """A client of the server that lags behind. Who has seen what it has waits, until it catches up."""
        self._reachable("watch")
        if index > 0:
            for _ in range(int(wait / LATE)):
                if self.behind is None:
                    break
                await asyncio.sleep(LATE)
                self._reachable("watch")
        return None if self.behind is None else MemoryConsul(self.behind)

    # --- how every call goes ------------------------------------------------------------------------------------

    def _do(self, doing: str, work: Callable[[Store], T]) -> T:
        self._called()
        done = super()._do(doing, work)
        if self.deaf:
            raise Waiting(f"cannot {doing}: Consul does not answer", code=UNAVAILABLE)
        self.heard = Monotonic(self.store.now())
        return done

    def _reachable(self, doing: str) -> None:
        super()._reachable(doing)
        if self.deaf and doing.startswith("watch"):
            raise Waiting(f"cannot {doing}: Consul does not answer", code=UNAVAILABLE)

    def _interruption(self) -> Callable[[], bool]:
        began = self._restores
        return lambda: self._cut or self.deaf or self._restores > began


def lagging(store: Store) -> Store:
    """What a server shows that has stopped hearing of changes now."""
    held = _copied(store)
    for check in held.checks.values():
        check.expires = check.deregister_after = None
    for session in held.sessions.values():
        session.expires = None
    held._due = []
    held.delays = {}
    return held


def snapshot(store: Store) -> Store:
    """Everything as it is now, to be restored later."""
    return _copied(store)


def restore(store: Store, saved: Store) -> None:
    """Keys and sessions are as they were when the snapshot was taken; TTLs start again, as after an election.

    Services and checks belong to the Consul agents on the machines, which tell the servers of them anew.
    """
    for name in ("index", "entries", "sessions", "tombs", "_sorted", "session_index"):
        setattr(store, name, getattr(saved, name))
    store.delays = {}
    for session in list(store.sessions):
        store.renew_session(session)
    for row in store.services.values():
        store.names[row.name] = store.catalog_index = store.bump()
    for held in list(store.sessions.values()):
        if not all(check in store.checks and store.checks[check].status != "critical" for check in held.service_checks):
            store.destroy_session(held.id)
    _tell(store)


def wipe(store: Store) -> None:
    """Everything that was ever written is gone."""
    empty = Store(store.now, new_id=store.new_id, node=store.node)
    for name in _STATE:
        setattr(store, name, getattr(empty, name))
    _tell(store)


def _copied(store: Store) -> Store:
    held = copy.copy(store)
    held.detach()
    held.entries = dict(store.entries)
    held.sessions = {name: copy.copy(row) for name, row in store.sessions.items()}
    held.services = {name: copy.copy(row) for name, row in store.services.items()}
    held.checks = {name: copy.copy(row) for name, row in store.checks.items()}
    held.names = dict(store.names)
    held.events = list(store.events)
    return held


def _tell(store: Store) -> None:
    for listener in tuple(store.listeners):
        listener("meta", "restored")
