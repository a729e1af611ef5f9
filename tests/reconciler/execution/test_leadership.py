"""One controller leads, on virtual time against Consul in memory; who cannot be certain sends nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agent import keys
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from reconciler.execution.leadership import SESSION_TTL, Leadership, LeadershipLost, Term
from reconciler.execution.locks import NodeLocks
from reconciler.simulation import virtual
from reconciler.simulation.virtual import VirtualClock, VirtualLoop

TTL = 3.0


class Stage:
    """A Consul and the controllers that want to lead through it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.clock = VirtualClock(loop)
        self.store = Store(now=self.clock.now)
        self.clients: dict[str, MemoryConsul] = {}

    def candidate(self, name: str) -> Leadership:
        self.clients[name] = MemoryConsul(self.store)
        return Leadership("c", name, f"http://{name}:1", consul=self.clients[name], clock=self.clock, ttl=TTL)

    async def key(self, key: str) -> Any:
        entry = await MemoryConsul(self.store).get(key)
        return json.loads(entry.value) if entry else None


def story(test: Callable[[Stage], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """The test as a run on virtual time."""

    async def on_stage() -> None:
        await test(Stage())

    def run() -> None:
        virtual.run(on_stage())

    run.__name__ = test.__name__
    return run


async def hold(leadership: Leadership, terms: list[Term]) -> None:
    async with leadership.term() as term:
        terms.append(term)
        await term.ended.wait()


async def until(true: Callable[[], bool], limit: float = 60.0) -> None:
    async with asyncio.timeout(limit):
        while not true():
            await asyncio.sleep(0.05)


@story
async def test_the_first_leads_and_says_so(stage: Stage) -> None:
    async with stage.candidate("one").term() as term:
        assert term.epoch == 1
        assert term.fresh_consul
        assert (await stage.key(keys.leader("c")))["name"] == "one"
        assert await stage.key(keys.epoch("c")) == 1
        await asyncio.sleep(10 * TTL)
        term.must_hold(stage.clock.now())


@story
async def test_another_takes_over_within_the_ttl_with_a_higher_epoch(stage: Stage) -> None:
    first: list[Term] = []
    second: list[Term] = []
    one = asyncio.create_task(hold(stage.candidate("one"), first))
    await until(lambda: bool(first))
    two = asyncio.create_task(hold(stage.candidate("two"), second))
    await asyncio.sleep(10.0)
    assert not second
    stage.clients["one"].cut = True
    cut_at = stage.clock.now()
    await until(lambda: bool(second))
    assert stage.clock.now() - cut_at <= TTL + 1.0
    assert (second[0].epoch, second[0].fresh_consul) == (2, True)  # nobody has waited yet for nodes that may be missing
    with pytest.raises(LeadershipLost):
        first[0].must_hold(stage.clock.now())
    for task in (one, two):
        task.cancel()
    await asyncio.gather(one, two, return_exceptions=True)


@story
async def test_once_a_leader_has_waited_for_missing_nodes_no_later_one_does(stage: Stage) -> None:
    async with stage.candidate("one").term() as term:
        assert term.fresh_consul
        await stage.clients["one"].delete(keys.fresh("c"))
    async with stage.candidate("two").term() as term:
        assert not term.fresh_consul


@story
async def test_another_takes_over_when_the_leader_s_machine_is_gone_with_its_consul_agent(stage: Stage) -> None:
    """Who is left goes on showing the leader's check as it was: only the session's own TTL ends it."""
    terms: list[Term] = []
    one = asyncio.create_task(hold(stage.candidate("one"), terms))
    await until(lambda: bool(terms))
    two = asyncio.create_task(hold(stage.candidate("two"), terms))
    await asyncio.sleep(5 * SESSION_TTL)
    assert len(terms) == 1
    stage.clients["one"].cut = True
    stage.store.checks[keys.controller_check_id("c", "one")].expires = None
    cut_at = stage.clock.now()
    await until(lambda: len(terms) == 2)
    assert stage.clock.now() - cut_at <= 2 * SESSION_TTL + 1.0
    with pytest.raises(LeadershipLost):
        terms[0].must_hold(stage.clock.now())
    for task in (one, two):
        task.cancel()
    await asyncio.gather(one, two, return_exceptions=True)


@story
async def test_who_cannot_reach_consul_is_not_certain_for_longer_than_the_ttl(stage: Stage) -> None:
    async with stage.candidate("one").term() as term:
        await asyncio.sleep(5.0)
        stage.clients["one"].cut = True
        await asyncio.sleep(TTL + 0.1)
        with pytest.raises(LeadershipLost):
            term.must_hold(stage.clock.now())


@story
async def test_an_epoch_that_came_back_with_an_old_snapshot_ends_the_term_and_the_next_one_is_above_all(
    stage: Stage,
) -> None:
    leadership, terms = stage.candidate("one"), list[Term]()
    async with leadership.term() as term:
        await leadership.raise_epoch(term, 6)
        await asyncio.sleep(2 * TTL)
        assert (term.epoch, term.ended.is_set()) == (7, False)
        stage.store.put(keys.epoch("c"), b"1")
        await until(term.ended.is_set)
        assert "older snapshot" in term.why
    again = asyncio.create_task(hold(leadership, terms))
    await until(lambda: bool(terms))
    assert terms[0].epoch == 8
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)


@story
async def test_a_taken_key_ends_the_term(stage: Stage) -> None:
    async with stage.candidate("one").term() as term:
        thief = MemoryConsul(stage.store)
        await thief.delete(keys.leader("c"))
        session = await thief.session_create("thief", ttl=None, lock_delay=0.0)
        assert await thief.acquire(keys.leader("c"), b"{}", session)
        async with asyncio.timeout(TTL):
            await term.ended.wait()


@story
async def test_an_epoch_heard_of_is_passed(stage: Stage) -> None:
    leadership = stage.candidate("one")
    async with leadership.term() as term:
        await leadership.raise_epoch(term, 41)
        assert term.epoch == 42
        assert await stage.key(keys.epoch("c")) == 42


@story
async def test_a_lock_that_somebody_holds_is_respected(stage: Stage) -> None:
    owner = MemoryConsul(stage.store)
    session = await owner.session_create("ann", ttl=None, lock_delay=0.0)
    assert await owner.acquire(keys.node_lock("c", "b"), b'{"who": "ann", "why": "patching"}', session)
    async with stage.candidate("one").term() as term:
        locks = NodeLocks("c", term.session, "controller one", consul=stage.clients["one"], clock=stage.clock)
        assert await locks.take(["a", "b", "c"], "commit 12345678") == {"a", "c"}
        assert (await stage.key(keys.node_lock("c", "a")))["why"] == "commit 12345678"
        assert (await stage.key(keys.node_lock("c", "b")))["who"] == "ann"
        await locks.free(["a", "b", "c"])
        assert not locks.held
        assert await owner.acquire(keys.node_lock("c", "a"), b"{}", session)


@story
async def test_a_controller_that_restarts_at_once_leads_again(stage: Stage) -> None:
    """Its earlier life holds the lock by a session that is bound to a check of the same name, which the new life beats."""
    first, terms = stage.candidate("one"), list[Term]()
    life = asyncio.create_task(hold(first, terms), name="first life")
    async with asyncio.timeout(5):
        while not terms:
            await asyncio.sleep(0.1)
    stage.clients["one"].cut = True  # kill -9: nothing it does while it ends reaches Consul
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)
    again = asyncio.create_task(hold(stage.candidate("one"), terms), name="second life")
    async with asyncio.timeout(TTL):
        while len(terms) < 2:
            await asyncio.sleep(0.1)
    assert terms[1].epoch == terms[0].epoch + 1
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)


@story
async def test_a_leader_that_finds_consul_s_data_lost_leaves_word_for_later_ones(stage: Stage) -> None:
    """Known by an epoch that is lower than one it has heard of; the first epoch of a new cluster says nothing of the kind."""
    one = stage.candidate("one")
    async with one.term() as term:
        assert await stage.key(keys.rewound("c")) is None
        await one.raise_epoch(term, 7)  # a node was claimed with it
        assert (term.epoch, "since" in await stage.key(keys.rewound("c"))) == (8, True)
    await stage.clients["one"].delete(keys.rewound("c"))
    async with one.term() as term:
        assert (term.epoch, await stage.key(keys.rewound("c"))) == (9, None)
    await stage.clients["one"].delete(keys.epoch("c"))
    async with one.term() as term:
        assert (term.epoch, term.fresh_consul, "since" in await stage.key(keys.rewound("c"))) == (10, True, True)
