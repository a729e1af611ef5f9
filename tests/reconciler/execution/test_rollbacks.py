"""What a rollback writes, who may still write beside it, and which ways back are refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest

from agent import keys
from agent.clock import SystemClock
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.errors import Missing, Refused
from reconciler.execution.approvals import PlanSuperseded
from reconciler.execution.history import History
from reconciler.execution.proven import NotLeading
from reconciler.execution.record import RecordStore
from reconciler.execution.rollbacks import Rollbacks
from reconciler.model.desired import ClusterSpec, DesiredState
from reconciler.model.plan import Plan
from reconciler.model.problems import Problem
from reconciler.simulation.source import SimSource
from reconciler.source.sourced import Sourced


@dataclass
class Desk:
    """A leader's record, history and rollbacks, with three commits of which the third is in force."""

    consul: MemoryConsul
    session: str
    source: SimSource
    record: RecordStore
    history: History
    rollbacks: Rollbacks

    async def sourced(self) -> Sourced:
        return await self.source.look(rollback=self.record.rollback)

    async def value(self, name: str) -> Any:
        entry = await self.consul.get(keys.record("c", name))
        return json.loads(entry.value) if entry else None

    def successor(self) -> RecordStore:
        return RecordStore("c", consul=self.consul, clock=SystemClock())


def state(commit: str, keep: int = 50) -> DesiredState:
    return DesiredState(
        commit, ClusterSpec("c", {}, retain_history=keep), {}, subject=f"subject {commit}", author="ann"
    )


def healthy(commit: str) -> Plan:
    return Plan(commit, (), (), {}, healthy=True)


@pytest.fixture
async def desk() -> Desk:
    clock = SystemClock()
    consul = MemoryConsul(Store(now=clock.now))
    session = await consul.session_create("controller", ttl=30.0, lock_delay=0.0)
    assert await consul.acquire(keys.leader("c"), b"{}", session)
    source = SimSource()
    record, history = (kind("c", consul=consul, clock=clock) for kind in (RecordStore, History))
    assert isinstance(record, RecordStore)
    assert isinstance(history, History)
    made = Desk(consul, session, source, record, history, Rollbacks(record, history, source, clock))
    for name in ("one", "two", "three"):
        pushed = state(name)
        source.push(Sourced(pushed, name))
        await record.put_in_force(name, pushed.subject, session)
        await history.note(await made.sourced(), healthy(name), session)
    return made


async def go(desk: Desk, to: str | None = None) -> None:
    sourced = await desk.sourced()
    way = await desk.rollbacks.way(sourced, to)
    await desk.rollbacks.go(way, sourced, desk.session, who="bob", why="slow")


async def test_a_successor_knows_it(desk: Desk) -> None:
    await go(desk)
    after = desk.successor()
    assert await after.in_force() == "two"
    assert after.rollback == desk.record.rollback
    assert after.rollback is not None
    assert (after.rollback.left, after.rollback.who, after.rollback.quarantined) == (
        "three",
        "bob",
        frozenset({"three"}),
    )
    looked = await desk.source.look(rollback=after.rollback)
    assert looked.desired == state("two")


async def test_a_cycle_that_began_before_it_does_not_undo_it(desk: Desk) -> None:
    await go(desk)
    await desk.record.put_in_force("three", "", desk.session)
    assert (await desk.value("commit"))["commit"] == "two"
    assert (await desk.value("commit"))["rollback"]["from"] == "three"


async def test_a_newer_commit_in_force_ends_it(desk: Desk) -> None:
    await go(desk)
    await desk.record.put_in_force("four", "", desk.session)
    assert desk.record.rollback is None
    assert "rollback" not in await desk.value("commit")


async def test_taken_back_it_is_over_and_a_second_time_there_is_none(desk: Desk) -> None:
    await go(desk)
    before = await desk.sourced()
    await desk.rollbacks.cancel(desk.session)
    assert desk.record.rollback is None
    assert before.desired is not None
    await desk.record.put_in_force(before.desired.commit, "", desk.session)  # a cycle that began before
    assert "rollback" not in await desk.value("commit")
    with pytest.raises(Missing, match="NO_ROLLBACK"):
        await desk.rollbacks.cancel(desk.session)


async def test_what_consul_has_lost_the_last_leader_writes_again(desk: Desk) -> None:
    await go(desk)
    await desk.history.note(await desk.sourced(), healthy("two"), desk.session)
    before = [(pair.key, pair.value) for pair in await desk.consul.get_all(keys.record("c", "history"))]
    back = desk.record.rollback
    assert back is not None
    await desk.consul.delete(keys.record("c"), recurse=True)
    assert await desk.record.in_force() == "two"
    await desk.history.take_over()
    await desk.record.put_in_force("two", "", desk.session)
    await desk.history.note(await desk.sourced(), healthy("two"), desk.session)
    assert (await desk.value("commit"))["rollback"] == back.text()
    assert [(pair.key, pair.value) for pair in await desk.consul.get_all(keys.record("c", "history"))] == before


async def test_but_not_if_somebody_else_led_since(desk: Desk) -> None:
    await go(desk)
    desk.record.distrust()  # Consul has lost nothing: nothing is forgotten
    assert (await desk.sourced()).rollback is not None
    await desk.consul.delete(keys.record("c"), recurse=True)
    await desk.record.in_force()
    desk.record.distrust()
    assert (await desk.sourced()).rollback is None
    await desk.record.put_in_force("three", "", desk.session)
    assert "rollback" not in await desk.value("commit")


async def test_only_the_leader_writes(desk: Desk) -> None:
    await desk.consul.session_destroy(desk.session)
    with pytest.raises(NotLeading):
        await go(desk)
    assert (await desk.value("commit"))["commit"] == "three"
    assert desk.record.rollback is None


async def test_the_last_good_commit_is_found_also_after_a_rollback(desk: Desk) -> None:
    await go(desk)
    desk.history._last = None
    await desk.history.note(await desk.sourced(), healthy("two"), desk.session)
    assert (await desk.rollbacks.way(await desk.sourced())).to.commit == "one"


@pytest.mark.parametrize(
    ("to", "expected", "error", "words"),
    [
        ("three", None, Refused, "ALREADY_IN_FORCE"),
        ("nobody", None, Missing, "GIT_REF_MISSING"),
        ("two", "two", PlanSuperseded, "three is in force now, not two"),
        ("four", None, Refused, "NOT_EARLIER"),
        ("bad", None, Refused, "ROLLBACK_TARGET commit bad is not valid .1 problem.s., first x.yaml:1:1 KIND"),
    ],
)
async def test_ways_that_are_refused(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, to: str, expected: str | None, error: type[Exception], words: str
) -> None:
    sourced = await desk.sourced()
    desk.source.push(Sourced(state("four"), "four"))
    known = desk.source.load

    async def load(revision: str) -> Sourced:
        if revision == "bad":
            return Sourced(None, "bad", (Problem("x.yaml", 1, 1, "KIND", "unknown kind"),))
        return await known(revision)

    monkeypatch.setattr(desk.source, "load", load)
    with pytest.raises(error, match=words):
        await desk.rollbacks.way(sourced, to, expected)
    assert desk.record.rollback is None


async def test_without_a_history_a_commit_must_be_named(desk: Desk) -> None:
    desk.history.entries = ()  # as after a loss of Consul
    with pytest.raises(Refused, match=r"NOTHING_EARLIER .*tdie rollback --to REV"):
        await desk.rollbacks.way(await desk.sourced())
    assert (await desk.rollbacks.way(await desk.sourced(), "one")).to.commit == "one"


async def test_the_history_is_small_values_bounded_and_read_by_the_next_leader(desk: Desk) -> None:
    for n in range(130):
        commit = state(f"c{n}", keep=100 if n < 129 else 5)
        wordy = replace(commit, subject="ü" * 50_000, author="x" * 50_000)
        desk.source.push(Sourced(wordy, commit.commit))
        await desk.history.note(await desk.sourced(), healthy(commit.commit), desk.session)
        if n == 128:
            assert len(desk.history.entries) == 100
    pairs = await desk.consul.get_all(keys.record("c", "history"))
    assert max(len(pair.value) for pair in pairs) < 4096
    after = History("c", consul=desk.consul, clock=SystemClock())
    await after.take_over()
    assert after.entries == desk.history.entries
    assert [entry.commit for entry in after.entries] == [f"c{n}" for n in range(125, 130)]


async def test_an_entry_nobody_can_read_is_left_where_it_is(desk: Desk) -> None:
    key = keys.record("c", "history", "00000000")
    for nonsense in (b"{", b"[]", b'{"number": 1}', b'{"number": "x", "commit": "y"}', b'{"number": 9, "commit": 1}'):
        await desk.consul.put(key, nonsense)
        assert [entry.commit for entry in await desk.history.load()] == ["one", "two", "three"]
    assert (await desk.consul.get(key)) is not None


async def test_nothing_new_is_no_write(desk: Desk) -> None:
    before = {pair.key: pair.modify_index for pair in await desk.consul.get_all(keys.record("c"))}
    sourced = await desk.sourced()
    for _ in range(2):
        await desk.history.note(sourced, healthy("three"), desk.session)
        await desk.record.put_in_force("three", "", desk.session)
    assert {pair.key: pair.modify_index for pair in await desk.consul.get_all(keys.record("c"))} == before
