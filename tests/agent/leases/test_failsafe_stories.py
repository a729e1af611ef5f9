"""Replicas that outlive their session by agreement, on virtual time with real agents."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest

from agent import keys
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.errors import Refused, Waiting
from agent.leases.failsafe import Kept, read_book
from agent.leases.peers import Ack, Ask
from agent.leases.promises import Promises
from agent.ledger import MemoryLedger
from reconciler.simulation.consul import elected
from tests.agent.leases.test_lease_stories import D, Fleet, T, story, wipe

SILENCE = 600.0


def ask(node: str, holder: str = "a", seconds: float = T) -> Ask:
    return Ask(cluster="c", node=node, holder=holder, replica="one.0", seconds=seconds)


def away(fleet: Fleet, gone: bool = True) -> None:
    """Nobody reaches Consul, which keeps everything: its sessions are good for another TTL when it is back."""
    for consul in fleet.consuls.values():
        consul.cut = gone


async def stopped(fleet: Fleet, seconds: float) -> None:
    """Consul's servers do not run for so long: no session ends, and each is good for another TTL then."""
    until = fleet.clock.now() + seconds
    while fleet.clock.now() < until:
        elected(fleet.store)
        await asyncio.sleep(1.0)


async def kept(fleet: Fleet, *others: str) -> None:
    """The first node runs it, all have been seen by the holder."""
    fleet.start("a", *others)
    await asyncio.sleep(1.0)
    await fleet.order("a", "one.0", lease="failsafe")
    await fleet.until(lambda: fleet.running("a"))
    await fleet.until(lambda: set(eligible(fleet)) == {"a", *others}, within=20.0)


def eligible(fleet: Fleet) -> dict[str, str]:
    entry = fleet.store.entries.get(keys.lease("c", "one.0"))
    return dict(json.loads(entry.value).get("eligible", {})) if entry else {}


def test_consul_away_for_long_stops_nothing_and_the_report_says_who_agrees() -> None:
    async def body(fleet: Fleet) -> None:
        await kept(fleet, "b", "c")
        pid = fleet.machines["a"].rows["one.0"].pid
        away(fleet)
        await fleet.until(lambda: fleet.lease("a").code == "FAILSAFE", within=T)
        assert str(fleet.lease("a")) == "FAILSAFE, Consul is away; kept running by agreement of 3 nodes (a, b, c)"
        await stopped(fleet, SILENCE)
        assert fleet.machines["a"].rows["one.0"].pid == pid
        assert "FENCED" not in fleet.problems("a")
        away(fleet, False)
        await fleet.until(lambda: fleet.lease("a").code == "", within=10.0)
        await asyncio.sleep(2 * T + D)
        assert (fleet.machines["a"].rows["one.0"].pid, fleet.lease("a").state) == (pid, "held")

    story(body)


def test_one_dead_peer_makes_it_behave_as_strict() -> None:
    async def body(fleet: Fleet) -> None:
        await kept(fleet, "b", "c")
        await fleet.crash("c")
        began = fleet.clock.now()
        away(fleet)
        await fleet.until(lambda: not fleet.running("a"), within=T)
        assert fleet.clock.now() - began <= T
        assert fleet.machines["a"].rows["one.0"].fenced == "LEASE_EXPIRED"

    story(body)


def test_it_ends_by_its_last_agreement_when_a_peer_dies_later() -> None:
    async def body(fleet: Fleet) -> None:
        await kept(fleet, "b", "c")
        away(fleet)
        await asyncio.sleep(200.0)
        assert fleet.running("a")
        await fleet.crash("b")
        assert await fleet.until(lambda: not fleet.running("a"), within=T) > T / 3

    story(body)


def test_a_promise_keeps_a_peer_from_starting_it_until_the_holder_is_dead() -> None:
    async def body(fleet: Fleet) -> None:
        await kept(fleet, "b")
        fleet.consuls["a"].cut = True
        await fleet.until(lambda: fleet.lease("a").code == "FAILSAFE", within=T)
        await fleet.order("b", "one.0", lease="failsafe")
        await asyncio.sleep(2 * T + D + 60)  # its session is over; the promises of b are not
        assert fleet.running("a")
        assert fleet.lease("b").code in ("PROMISED", "WAITING_LOCK_DELAY", "WAITING_LEASE")
        fleet.alone.add("a")
        await fleet.until(lambda: fleet.running("b"), within=2 * T + D)
        with pytest.raises(Refused, match="runs on b"):
            await fleet.agents["b"].failsafe_ack(ask("b"))

    story(body)


def test_who_finds_no_record_asks_all_whether_somebody_runs_it() -> None:
    """Somebody deletes the key while its holder is cut off; a node that joined since is not among those that it asks."""

    async def body(fleet: Fleet) -> None:
        await kept(fleet, "b")
        fleet.consuls["a"].cut = True
        await fleet.until(lambda: fleet.lease("a").code == "FAILSAFE", within=T)
        fleet.start("c")
        fleet.store.delete(keys.lease("c", "one.0"))
        await fleet.order("c", "one.0", lease="failsafe")
        await fleet.until(lambda: fleet.lease("c").code == "NOT_AGREED", within=2 * T + D)
        assert (
            str(fleet.lease("c"))
            == "waits for its lease: who ran it last is not known, and b did not agree (NOT_AGREED)"
        )
        await asyncio.sleep(2 * T + D)
        assert fleet.running("a")
        assert not fleet.running("c")
        fleet.alone.add("a")
        await fleet.until(lambda: fleet.running("c"), within=3 * T)
        assert not fleet.running("a")

    story(body)


def test_a_holder_that_lost_its_lease_promises_like_any_other() -> None:
    """It cannot know yet that another one holds it; nothing of it is left, so it is no reason for that one to end."""

    async def body(fleet: Fleet) -> None:
        await kept(fleet, "b")
        fleet.consuls["a"].cut = True
        fleet.alone.add("a")
        await fleet.until(lambda: not fleet.running("a"), within=T)
        await fleet.order("b", "one.0", lease="failsafe")
        await fleet.until(lambda: fleet.running("b"), within=4 * T + D)
        fleet.alone.discard("a")
        await fleet.until(lambda: set(eligible(fleet)) == {"a", "b"}, within=20.0)
        away(fleet)
        await stopped(fleet, 3 * T)
        assert fleet.lease("b").code == "FAILSAFE"
        assert (fleet.running("a"), fleet.lease("a").state) == (False, "fenced")

    story(body)


def test_a_lease_that_is_ours_again_waits_for_what_was_promised_meanwhile() -> None:
    async def body(fleet: Fleet) -> None:
        await kept(fleet, "b")
        fleet.consuls["a"].cut = True
        fleet.alone.add("a")
        await fleet.until(lambda: fleet.lease("a").state == "fenced", within=T)
        await fleet.agents["a"].failsafe_ack(ask("a", holder="b"))
        promised = fleet.clock.now() + T
        elected(fleet.store)
        fleet.consuls["a"].cut = False
        await fleet.until(lambda: fleet.running("a"), within=2 * T)
        assert fleet.clock.now() >= promised

    story(body)


def test_a_node_that_the_holder_does_not_know_may_not_take_it() -> None:
    async def body(fleet: Fleet) -> None:
        await kept(fleet, "b")
        fleet.consuls["a"].cut = True
        fleet.start("z")  # joins while the holder cannot write it down
        await asyncio.sleep(1.0)
        await fleet.order("z", "one.0", lease="failsafe")
        await fleet.until(lambda: fleet.lease("z").code == "NOT_ELIGIBLE", within=4 * T + D)
        await asyncio.sleep(300.0)
        assert fleet.running("a")
        assert not fleet.running("z")
        assert fleet.lease("z").eligible == ("a", "b")
        assert str(fleet.lease("z")).startswith(
            "may not have its lease, its last holder may be alive and knows only of a, b"
        )

    story(body)


def test_a_node_that_the_holder_does_not_know_may_not_take_it_either_from_a_consul_that_lost_its_data() -> None:
    async def body(fleet: Fleet) -> None:
        await kept(fleet, "b")
        fleet.consuls["a"].cut = True
        fleet.start("z")
        await asyncio.sleep(1.0)
        await fleet.order("z", "one.0", lease="failsafe")
        await fleet.until(lambda: fleet.lease("z").code == "NOT_ELIGIBLE", within=4 * T + D)
        wipe(fleet)
        fleet.store.put(keys.epoch("c"), b"4")
        await asyncio.sleep(6 * T + 2 * D)
        assert (fleet.running("a"), fleet.running("z")) == (True, False)
        fleet.consuls["a"].cut = False
        await fleet.until(lambda: set(eligible(fleet)) == {"a", "b", "z"}, within=4 * T + D)

    story(body)


def test_a_new_node_is_written_down_while_consul_is_there() -> None:
    async def body(fleet: Fleet) -> None:
        await kept(fleet, "b")
        fleet.start("z")
        await fleet.until(lambda: "z" in eligible(fleet), within=30.0)
        assert eligible(fleet) == {name: f"http://{name}:5100" for name in ("a", "b", "z")}

    story(body)


def test_a_promise_outlives_the_agent_and_counts_anew_after_a_reboot() -> None:
    async def body(fleet: Fleet) -> None:
        fleet.start("a", "b")
        await asyncio.sleep(1.0)
        await fleet.agents["b"].failsafe_ack(ask("b"))
        until = fleet.clock.now() + T
        await fleet.crash("b")
        fleet.start("b")
        await asyncio.sleep(1.0)
        assert fleet.agents["b"]._leases.promises.book.until("one.0") == until
        await fleet.crash("b")
        fleet.machines["b"].boot += 1
        await asyncio.sleep(10.0)
        fleet.start("b")
        booted = fleet.clock.now()
        await asyncio.sleep(1.0)
        assert fleet.agents["b"]._leases.promises.book.until("one.0") >= booted + T

    story(body)


def test_no_promise_is_answered_that_is_not_on_disk() -> None:
    class Full(MemoryLedger):
        async def save_failsafe(self, failsafe: str) -> None:
            raise Waiting("disk full", code="LEDGER_WRITE")

    async def body(fleet: Fleet) -> None:
        fleet.ledgers["b"] = Full()
        fleet.start("b")
        await asyncio.sleep(1.0)
        with pytest.raises(Waiting, match="disk full"):
            await fleet.agents["b"].failsafe_ack(ask("b"))

    story(body)


def test_whom_to_ask_is_written_again_when_the_disk_was_full() -> None:
    class FullOnce(MemoryLedger):
        full = True

        async def save_failsafe(self, failsafe: str) -> None:
            if self.full:
                raise Waiting("disk full", code="LEDGER_WRITE")
            await super().save_failsafe(failsafe)

    async def body(fleet: Fleet) -> None:
        ledger = FullOnce()
        promises = Promises(ledger, fleet.clock, "boot")
        members = Kept((1, 2), {"a": "", "b": "", "z": ""})
        for _ in range(2):  # nothing is let through by what is only in memory
            with pytest.raises(Waiting, match="disk full"):
                await promises.keep("one.0", members)
        ledger.full = False
        await promises.keep("one.0", members)
        assert read_book((await ledger.load()).failsafe).kept == {"one.0": members}

    story(body)


def test_who_is_getting_it_promises_nothing() -> None:
    async def body(fleet: Fleet) -> None:
        fleet.start("b")
        await asyncio.sleep(1.0)
        await fleet.order("b", "one.0", lease="failsafe")
        await fleet.until(lambda: keys.lease("c", "one.0") in fleet.store.entries)  # locked; it runs a lock-delay later
        assert not fleet.running("b")
        with pytest.raises(Refused, match="runs on b, or is about to"):
            await fleet.agents["b"].failsafe_ack(ask("b"))

    story(body)


def test_what_has_to_end_here_is_no_reason_to_end_it_elsewhere() -> None:
    """As on a machine that slept: what it ran is still there, and another node has the lease by now."""

    async def body(fleet: Fleet) -> None:
        await kept(fleet, "b")
        with pytest.raises(Refused, match="runs on a, or is about to"):
            await fleet.agents["a"].failsafe_ack(ask("a", holder="b"))
        fleet.machines["a"].stick("one.0")
        fleet.alone.add("a")
        fleet.consuls["a"].cut = True
        await fleet.until(lambda: fleet.lease("a").state == "ending", within=2 * T)
        with pytest.raises(Waiting, match=r"one\.0 is being ended on a \(LEASE_EXPIRED\)"):
            await fleet.agents["a"].failsafe_ack(ask("a", holder="b"))
        fleet.machines["a"].free("one.0")
        await fleet.until(lambda: fleet.lease("a").state == "fenced")
        assert await fleet.agents["a"].failsafe_ack(ask("a", holder="b")) == Ack(node="a", replica="one.0")

    story(body)


class DeafOnce(MemoryConsul):
    """It takes the first lock that it is asked for, or does not, and nobody hears of it: from then on there is no way to it."""

    def __init__(self, store: Store, *, takes: bool) -> None:
        super().__init__(store)
        self.takes = takes

    async def acquire(self, key: str, value: bytes, session: str) -> bool:
        taken = self.takes and await super().acquire(key, value, session)
        self.cut = key == keys.lease("c", "one.0")
        if self.cut:
            raise Waiting("no answer")
        return taken


@pytest.mark.parametrize("takes", [True, False])
def test_who_tried_to_get_it_and_heard_no_answer_promises(takes: bool) -> None:
    """Somebody else has it since, and must not end for that."""

    async def body(fleet: Fleet) -> None:
        fleet.start("a")
        fleet.consul = partial(DeafOnce, takes=takes)
        fleet.start("b")
        await asyncio.sleep(1.0)
        await fleet.order("b", "one.0", lease="failsafe")
        await fleet.until(lambda: fleet.consuls["b"].cut)
        await goes_on_elsewhere(fleet)

    story(body)


def test_who_had_the_lock_and_lost_it_before_it_ran_promises() -> None:
    async def body(fleet: Fleet) -> None:
        fleet.start("a", "b")
        await asyncio.sleep(1.0)
        await fleet.order("b", "one.0", lease="failsafe")
        await fleet.until(lambda: fleet.lease("b").code == "WAITING_LOCK_DELAY")
        fleet.consuls["b"].cut = True
        await goes_on_elsewhere(fleet)

    story(body)


async def goes_on_elsewhere(fleet: Fleet) -> None:
    """Node a gets it, b has no way to Consul; then nobody has, and a runs on because b agrees."""
    await fleet.order("a", "one.0", lease="failsafe")
    await fleet.until(lambda: fleet.running("a"))
    assert set(eligible(fleet)) == {"a", "b"}
    away(fleet)
    await stopped(fleet, 3 * T)
    assert (fleet.running("a"), fleet.lease("a").code) == (True, "FAILSAFE")


def test_nobody_promises_while_it_is_not_known_who_gets_the_lock() -> None:
    asked = asyncio.Event()

    class Slow(MemoryConsul):
        async def acquire(self, key: str, value: bytes, session: str) -> bool:
            if key == keys.lease("c", "one.0"):
                asked.set()
                await asyncio.sleep(1.0)
            return await super().acquire(key, value, session)

    async def body(fleet: Fleet) -> None:
        fleet.consul = Slow
        fleet.start("b")
        await asyncio.sleep(1.0)
        await fleet.order("b", "one.0", lease="failsafe")
        await asked.wait()
        with pytest.raises(Waiting, match="Consul is being asked for the lease"):
            await fleet.agents["b"].failsafe_ack(ask("b"))

    story(body)


def test_who_is_asked_by_mistake_promises_nothing() -> None:
    async def body(fleet: Fleet) -> None:
        fleet.start("b")
        await asyncio.sleep(1.0)
        for wrong in (ask("c"), ask("b").model_copy(update={"cluster": "other"})):
            with pytest.raises(Exception, match="this is node b"):
                await fleet.agents["b"].failsafe_ack(wrong)
        assert await fleet.agents["b"].failsafe_ack(ask("b")) == Ack(node="b", replica="one.0")

    story(body)


def test_the_agent_of_the_holder_may_restart_while_consul_is_away() -> None:
    async def body(fleet: Fleet) -> None:
        await kept(fleet, "b")
        pid = fleet.machines["a"].rows["one.0"].pid
        away(fleet)
        await asyncio.sleep(60.0)
        await fleet.crash("a")
        fleet.start("a")
        fleet.consuls["a"].cut = True
        await asyncio.sleep(SILENCE)
        assert fleet.machines["a"].rows["one.0"].pid == pid
        assert fleet.lease("a").code == "FAILSAFE"

    story(body)


def test_a_session_that_was_revoked_ends_it_whoever_agrees() -> None:
    async def body(fleet: Fleet) -> None:
        await kept(fleet, "b")
        away(fleet)
        await fleet.until(lambda: fleet.lease("a").code == "FAILSAFE", within=T)
        entry = fleet.store.entries[keys.lease("c", "one.0")]
        fleet.store.destroy_session(entry.session)
        fleet.consuls["a"].cut = False
        await fleet.until(lambda: not fleet.running("a"), within=10.0)
        assert fleet.machines["a"].rows["one.0"].fenced == "LEASE_REVOKED"

    story(body)


def test_who_was_getting_it_when_it_lost_consul_agrees_that_another_one_keeps_it() -> None:
    async def body(fleet: Fleet) -> None:
        fleet.start("a", "b")
        await asyncio.sleep(1.0)
        await fleet.order("b", "one.0", lease="failsafe")
        await fleet.until(lambda: fleet.lease("b").code == "WAITING_LOCK_DELAY")
        with pytest.raises(Refused, match="FAILSAFE_REFUSED"):
            await fleet.agents["b"].failsafe_ack(ask("b"))
        fleet.consuls["b"].cut = True
        await fleet.until(lambda: fleet.lease("b").code == "CONSUL_UNAVAILABLE", within=2 * T)
        assert await fleet.agents["b"].failsafe_ack(ask("b")) == Ack(node="b", replica="one.0")
        fleet.consuls["b"].cut = False
        promised = fleet.clock.now() + T
        await fleet.until(lambda: fleet.running("b"), within=2 * (2 * T + D))
        assert fleet.clock.now() >= promised - 1.0

    story(body)
