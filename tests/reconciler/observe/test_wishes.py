"""What people want of nodes: written by one controller, understood by the next, never guessed."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from agent import keys
from agent.clock import Monotonic
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.errors import Refused
from reconciler.execution.node_wishes import NodeWishes
from reconciler.observe.wishes import Written, read
from reconciler.simulation.virtual import VirtualClock, VirtualLoop, run

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


def test_a_deadline_is_the_same_moment_on_another_clock() -> None:
    written = Written("ann", "new disk — Ü", NOON, True, NOON + timedelta(minutes=30))
    wish = read(written.text(), NOON + timedelta(minutes=10), Monotonic(500.0))
    assert (wish.who, wish.why, wish.drain, wish.deadline) == ("ann", "new disk — Ü", True, 500.0 + 20 * 60)
    assert str(wish) == "drained by ann: new disk — Ü"


def test_a_cordon_has_no_deadline() -> None:
    wish = read(Written("ann", "", NOON).text(), NOON, Monotonic(1.0))
    assert (wish.drain, wish.deadline, str(wish)) == (False, None, "cordoned by ann")


@pytest.mark.parametrize(
    "value",
    [b"", b"{}", b"[]", b"null", b'"drain"', b"\xff", b'{"who": 1, "why": "", "since": "", "drain": true}',
     b'{"who": "a", "why": "", "since": "", "drain": true, "deadline": "noon"}'],
)  # fmt: skip
def test_what_makes_no_sense_empties_no_node_and_fills_none(value: bytes) -> None:
    wish = read(value, NOON, Monotonic(1.0))
    assert (wish.drain, wish.deadline) == (False, None)
    assert "makes no sense" in str(wish)


def test_only_yes_drains() -> None:
    value = b'{"who": "a", "why": "", "since": "", "drain": "false", "deadline": null}'
    wish = read(value, NOON, Monotonic(1.0))
    assert not wish.drain


def test_a_lock_names_its_holder_and_a_leader_at_work_keeps_its_own() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clock = VirtualClock(loop)
        store = Store(now=clock.now)
        consul = MemoryConsul(store)
        wishes = NodeWishes("c", consul=consul, clock=clock)
        assert await wishes.unlock("a", "leader") == ""
        await wishes.lock("a", who="ann", why="new disk")
        with pytest.raises(Refused, match="NODE_LOCKED a is locked by ann: new disk"):
            await wishes.lock("a", who="bob", why="mine")
        assert len(store.sessions) == 1  # the one refused left nothing behind
        assert await wishes.unlock("a", "leader") == "ann: new disk"
        session = await consul.session_create("leader", ttl=None, lock_delay=0.0)
        assert await consul.acquire(keys.node_lock("c", "a"), b"{}", session)
        with pytest.raises(Refused, match="a controller is changing a"):
            await wishes.unlock("a", session)

    run(story())
