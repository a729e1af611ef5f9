"""Only the leader writes: what another one took over in the meantime is left as it is."""

from __future__ import annotations

import pytest

from agent import keys
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.consul.protocol import TxnOp, TxnRefused
from reconciler.execution import proven


async def led() -> tuple[MemoryConsul, str]:
    consul = MemoryConsul(Store(now=lambda: 0.0))
    session = await consul.session_create("controller", ttl=30.0, lock_delay=0.0)
    await consul.acquire(keys.leader("c"), b"", session)
    return consul, session


def puts(count: int) -> list[TxnOp]:
    return [TxnOp("set", f"tdie/c/record/{number}", b"x") for number in range(count)]


async def test_more_than_one_transaction_takes_is_written_whole() -> None:
    consul, session = await led()
    await proven.write(consul, proven.leads("c", session), puts(2 * proven.MOST_OPS + 1))
    assert len(await consul.get_all("tdie/c/record/")) == 2 * proven.MOST_OPS + 1


async def test_who_does_not_lead_any_more_writes_nothing_and_hears_why() -> None:
    consul, session = await led()
    await consul.session_destroy(session)
    later = await consul.session_create("another", ttl=30.0, lock_delay=0.0)
    await consul.acquire(keys.leader("c"), b"", later)
    with pytest.raises(proven.NotLeading, match="does not lead any more") as refused:
        await proven.write(consul, proven.leads("c", session), puts(1))
    assert (refused.value.code, refused.value.status) == ("NOT_LEADING", 409)
    assert await consul.get_all("tdie/c/record/") == ()


async def test_another_condition_that_fails_is_not_taken_for_a_lost_leadership() -> None:
    consul, session = await led()
    await consul.put("tdie/c/epoch", b"7")
    with pytest.raises(TxnRefused):
        await proven.write(consul, proven.leads("c", session), [TxnOp("cas", "tdie/c/epoch", b"8", index=0)])
