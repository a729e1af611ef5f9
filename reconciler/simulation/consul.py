"""Consul with all its troubles: cut off, answers that get lost, watches that are late, restarts that lose or restore data."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial, wraps
from random import Random
from typing import Any, Literal, Protocol, TypeVar

from agent.clock import Monotonic
from agent.consul import protocol
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.consul.errors import UNAVAILABLE
from agent.consul.protocol import CheckHealth, KeyValue, ServiceHealth
from agent.errors import TdieError, Waiting
from reconciler.simulation.virtual import later

T = TypeVar("T")

_STATE = ("index", "entries", "sessions", "tombs", "delays", "services", "checks", "names", "events",
          "session_index", "catalog_index", "event_index", "_sorted", "_due")  # fmt: skip
LATE = 1.0  # seconds between looks of a watch that asks a server which lags behind


class Listener(Protocol):
    """Hears what one client says to Consul, at the moment it has an effect."""

    def called(self) -> None: ...

    def wrote(self, text: bytes) -> None: ...

    def renewed(self, session: str, sent: float) -> None:
        """The client has been told that its session lives; it had asked at `sent`."""

    def frees(self, keys: Collection[str]) -> None:
        """The client gives these locks back."""

    def deletes(self, key: str) -> None: ...


class _Ways(MemoryConsul):
    """A client whose calls take time while the ways to Consul are slow; they arrive also when nobody waits any more."""

    def __init__(self, store: Store, random: Random) -> None:
        super().__init__(store)
        self._random = random
        self.slow = 0.0  # seconds that each way takes at most

    async def go(self, work: Callable[[], Coroutine[object, object, T]]) -> T:
        """What Consul answers, once that is here."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        later(self._random.uniform(0.0, self.slow), self._arrives, work, answer)
        return await answer

    def _arrives(self, work: Callable[[], Coroutine[object, object, T]], answer: asyncio.Future[T]) -> None:
        try:
            work().send(None)  # Consul in memory answers at once
        except StopIteration as done:
            later(self._random.uniform(0.0, self.slow), self._is_back, answer, done.value)
        except TdieError as error:
            _fails(answer, error)

    def _is_back(self, answer: asyncio.Future[T], value: T) -> None:
        try:
            self._reachable("hear the answer")
        except TdieError as error:
            _fails(answer, error)
        else:
            if not answer.done():
                answer.set_result(value)


def _fails(answer: asyncio.Future[T], error: TdieError) -> None:
    if not answer.done():  # who asked may have stopped waiting
        answer.set_exception(error)


def _slowly(plain: Callable[..., Coroutine[object, object, T]]) -> Callable[..., Coroutine[object, object, T]]:
    @wraps(plain)
    async def call(self: _Ways, *args: Any, **more: Any) -> T:
        if not self.slow:
            return await plain(self, *args, **more)
        return await self.go(partial(plain, self, *args, **more))

    return call


for _name in ("get", "get_all", "put", "delete", "acquire", "release", "txn", "session_create", "session_renew",
              "session_destroy", "session_info", "register", "deregister", "check_update", "local_services"):  # fmt: skip
    setattr(_Ways, _name, _slowly(getattr(MemoryConsul, _name)))


class SimConsul(_Ways):
    """One client of the simulated Consul. Watches may be answered by a server that lags behind; other reads are consistent."""

    def __init__(self, store: Store, random: Random, listener: Listener) -> None:
        super().__init__(store, random)
        self._listener = listener
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
        self._listener.wrote(value)
        return await super().put(key, value, cas=cas)

    async def acquire(self, key: str, value: bytes, session: str) -> bool:
        self._listener.wrote(value)
        return await super().acquire(key, value, session)

    async def txn(self, ops: Sequence[protocol.TxnOp]) -> tuple[KeyValue, ...]:
        for op in ops:
            self._listener.wrote(op.value or b"")
        return await super().txn(ops)

    async def register(self, service: protocol.Service) -> None:
        self._listener.wrote(repr(service).encode())
        await super().register(service)

    async def check_update(self, check_id: str, status: protocol.CheckState, output: str) -> None:
        self._listener.wrote(output.encode())
        await super().check_update(check_id, status, output)

    async def delete(self, key: str, *, cas: int | None = None, recurse: bool = False) -> bool:
        self._listener.deletes(key)
        return await super().delete(key, cas=cas, recurse=recurse)

    async def release(self, key: str, value: bytes, session: str) -> bool:
        held = self.store.entries.get(key)
        self._listener.frees((key,) if held is not None and held.session == session else ())
        return await super().release(key, value, session)

    async def session_create(
        self,
        name: str,
        *,
        ttl: float | None,
        lock_delay: float,
        behavior: Literal["release", "delete"] = "release",
        service_checks: Sequence[str] = (),
    ) -> str:
        sent = self.store.now()
        made = await super().session_create(
            name, ttl=ttl, lock_delay=lock_delay, behavior=behavior, service_checks=service_checks
        )
        self._listener.renewed(made, sent)
        return made

    async def session_renew(self, session: str) -> None:
        sent = self.store.now()
        await super().session_renew(session)
        self._listener.renewed(session, sent)

    async def session_destroy(self, session: str) -> None:
        self._listener.frees([entry.key for entry in self.store.entries.values() if entry.session == session])
        await super().session_destroy(session)

    async def watch(self, key: str, index: int, wait: float) -> tuple[int, KeyValue | None]:
        if (late := await self._late(index, wait)) is not None:
            return await late.watch(key, index, wait)
        return await super().watch(key, index, wait)

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
        self._listener.called()
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


def elected(store: Store) -> None:
    """Another server leads: all sessions are good for another TTL."""
    for session in list(store.sessions):
        store.renew_session(session)


def snapshot(store: Store) -> Store:
    """Everything as it is now, to be restored later."""
    return _copied(store)


def restore(store: Store, saved: Store) -> None:
    """Keys and sessions are as they were when the snapshot was taken; TTLs start again, as after an election.

    Services and checks belong to the Consul agents on the machines, which tell the servers of them anew.
    """
    for name in ("entries", "sessions", "tombs", "_sorted", "session_index"):
        setattr(store, name, getattr(saved, name))
    store.index = max(store.index, saved.index) + 2  # as Raft does: new writes have higher indexes than any before
    store.delays = {}
    elected(store)
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
