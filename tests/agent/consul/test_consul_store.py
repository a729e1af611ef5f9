"""The embedded store on a clock of our own, its journal, and clients in memory that can be cut off."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.consul.embedded.journal import Journal
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.state import Check, Service
from agent.consul.embedded.store import Store
from agent.consul.protocol import SessionGone
from agent.errors import Waiting


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Hand:
    return Hand()


@pytest.fixture
def store(clock: Hand) -> Store:
    return Store(clock)


def at(store: Store, clock: Hand, time: float) -> None:
    clock.time = 1000.0 + time
    store.advance()


def test_a_session_ends_at_twice_its_ttl_and_its_locks_after_the_delay(store: Store, clock: Hand) -> None:
    session = store.create_session(ttl=10, lock_delay=15)
    other = store.create_session(ttl=None, lock_delay=0)
    assert store.acquire("k", b"", session.id)
    assert store.next_due() == 1020.0
    at(store, clock, 19.9)
    store.renew_session(session.id)
    at(store, clock, 39.8)
    assert session.id in store.sessions
    at(store, clock, 39.9)
    assert session.id not in store.sessions
    assert store.entries["k"].session == ""
    at(store, clock, 54.8)
    assert not store.acquire("k", b"", other.id)
    at(store, clock, 54.9)
    assert store.acquire("k", b"", other.id)
    assert store.entries["k"].lock == 2


def test_a_service_critical_for_too_long_goes_away(store: Store, clock: Hand) -> None:
    store.register(Service("s", "web"), [Check("c", "c", ttl=10, deregister_after=60)])
    store.update_check("c", "passing", "")
    at(store, clock, 10)
    assert store.checks["c"].status == "critical"
    at(store, clock, 69)
    assert "s" in store.services
    at(store, clock, 70)
    assert store.services == {}
    assert store.checks == {}


def test_an_alias_notices_that_its_service_is_gone(store: Store) -> None:
    store.register(Service("a", "agent"), [Check("beat", "beat", status="passing", ttl=10)])
    store.register(Service("r", "web"), [Check("follows", "follows", alias="a")])
    store.register(Service("rr", "web"), [Check("follows2", "follows2", alias="r")])
    assert store.checks["follows2"].status == "passing"
    store.deregister("a")
    assert store.checks["follows"].status == "critical"
    assert store.checks["follows2"].status == "critical"


def test_two_aliases_that_follow_each_other_come_to_rest(store: Store) -> None:
    store.register(Service("a", "a"), [Check("ca", "ca", alias="b")])
    store.register(Service("b", "b"), [Check("cb", "cb", alias="a")])
    store.deregister("a")
    assert store.checks["cb"].status == "critical"


def test_a_beat_that_says_the_same_changes_nothing(store: Store) -> None:
    store.register(Service("a", "agent"), [Check("beat", "beat", ttl=10)])
    store.update_check("beat", "passing", "fine")
    store.take_changes()
    index = store.index
    store.update_check("beat", "passing", "fine")
    assert store.index == index
    assert store.take_changes() == {}


def test_a_failed_transaction_leaves_no_trace(store: Store) -> None:
    from agent.consul.embedded.txn import Op, TxnFailed

    store.put("k", b"1")
    before = (store.index, dict(store.entries))
    store.take_changes()
    with pytest.raises(TxnFailed) as raised:
        store.transact([Op("set", "k", b"2"), Op("delete-tree", ""), Op("get", "k"), Op("check-index", "k", index=3)])
    assert [number for number, _ in raised.value.errors] == [2, 3]
    assert (store.index, dict(store.entries)) == before
    assert store.take_changes() == {}


def test_the_journal_brings_everything_back(store: Store, clock: Hand, tmp_path: Path) -> None:
    journal, _ = Journal.open(tmp_path / "c.db")
    session = store.create_session(ttl=10, lock_delay=5)
    store.acquire("b", b"\x00\xff", session.id, 7)
    store.put("a", b"")
    store.put("gone", b"")
    store.delete("gone")
    store.register(Service("s", "web", meta={"m": "1"}), [Check("c", "c", ttl=10, status="passing")])
    store.fire("event", b"x")
    journal.write(store.take_changes())
    store.destroy_session(session.id)
    journal.write(store.take_changes())
    journal.close()
    journal, rows = Journal.open(tmp_path / "c.db")
    journal.close()
    again = Store(clock)
    again.load(rows)
    assert again.entries == store.entries
    assert again.index == store.index
    assert (again.tombs, again.names, again.events) == (store.tombs, store.names, store.events)
    assert again.services == store.services
    assert again.delayed("b")  # again in full: a restart must not open a lock early
    assert again.checks["c"].expires == 1010.0
    assert list(again.below("")) == list(store.below(""))


async def test_a_client_that_is_cut_off_knows_nothing(store: Store) -> None:
    one, two = MemoryConsul(store), MemoryConsul(store)
    await one.put("k", b"1")
    index, _ = await one.watch("k", 0, 1)
    watching = asyncio.create_task(one.watch("k", index, 1000))
    await asyncio.sleep(0)
    one.cut = True
    with pytest.raises(Waiting):
        await watching
    for ask in (one.get("k"), one.get_all(""), one.put("k", b"2"), one.leader(), one.watch("k", index, 1)):
        with pytest.raises(Waiting):
            await ask
    kept = await two.get("k")
    assert kept is not None
    assert kept.value == b"1"
    one.cut = False
    assert await one.get("k") == kept
    assert store.listeners == {}


def test_a_waiting_client_sees_time_pass_on_a_virtual_loop() -> None:
    """Hours of waiting on a loop whose clock jumps to the next thing to do."""
    loop = VirtualLoop()

    async def story() -> None:
        store = Store(loop.time)
        consul, other = MemoryConsul(store), MemoryConsul(store)
        session = await consul.session_create("holder", ttl=3600, lock_delay=0)
        await consul.acquire("k", b"", session)
        index, _ = await other.watch("k", 0, 1)
        assert await other.watch("k", index, 1800) == (index, await other.get("k"))
        _, held = await other.watch("k", index, 100_000)
        assert 7200 <= loop.time() < 7201
        assert held is not None
        assert held.session is None
        with pytest.raises(SessionGone):
            await consul.session_renew(session)

    loop.run_until_complete(story())
    loop.close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """Never sleeps: when nothing is ready its clock jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual = 0.0

    def time(self) -> float:
        return self._virtual

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._virtual = max(self._virtual, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]
