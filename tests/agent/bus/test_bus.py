"""The bus of a node on virtual time: routing, order, retries, dead letters, room, other nodes, and what a restart finds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent.bus import people
from agent.bus.table import Table
from agent.bus.values import NOBODY, Envelope, Limits
from agent.errors import Missing, Waiting
from agent.sdk.message import Subscription
from tests.agent.bus.world import World, story, until


def test_each_message_goes_to_one_replica_of_each_subscriber_in_order(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        node = await world.node()
        for who in ("shop.0", "shop.1"):
            node.consumer("shop", who)
        node.consumer("audit")
        await node.publish(*(f"{n}" for n in range(20)))
        await node.publish("other", type="Old")
        await until(lambda: not node.left())
        assert sorted(node.ids("shop.0") + node.ids("shop.1"), key=str) == sorted([*map(str, range(20)), "other"])
        assert len(node.ids("shop.0")) > 5 < len(node.ids("shop.1"))
        assert node.ids("audit.0") == [f"{n}" for n in range(20)]
        assert node.bus.room.count == node.bus.room.bytes == 0
        assert (node.bus.counters.accepted, node.bus.counters.delivered) == (21, 41)

    story(tmp_path, body)


def test_an_id_counts_once(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        node = await world.node()
        node.consumer("shop")
        await node.publish("1", type="Old")
        await node.publish("1", type="Old")
        await until(lambda: not node.left())
        await node.publish("1", type="Old")
        await asyncio.sleep(1)
        assert node.ids("shop.0") == ["1"]
        assert (node.bus.counters.accepted, node.bus.counters.duplicates) == (1, 2)
        assert node.bus.room.count == 0

    story(tmp_path, body)


def test_ids_are_known_for_a_time_and_a_number(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        node = await world.node()
        node.consumer("shop")
        await node.publish("1", "2", "3", "4", type="Old")
        await asyncio.sleep(70)  # trimmed to the last two
        await node.publish("1", "4", type="Old")
        await until(lambda: not node.left())
        assert node.ids("shop.0") == ["1", "2", "3", "4", "1"]
        await asyncio.sleep(1000)
        await node.publish("9", type="Old")
        await asyncio.sleep(70)  # the old ones have lapsed
        await node.publish("4", type="Old")
        await until(lambda: not node.left())
        assert node.ids("shop.0")[-2:] == ["9", "4"]

    story(tmp_path, body, Limits(remembered=900.0, remembered_count=2))


def test_what_fails_is_tried_again_later_and_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        node = await world.node(table={"shop": (Subscription("orders"),)})
        bad = node.consumer("shop", "bad", window=1, outcome="OSError: no disk")
        await node.publish("1")
        await until(lambda: len(node.got) == 1)
        await asyncio.sleep(0.2)
        (delivery,) = people.everything(node.bus)
        assert (delivery.attempts, delivery.error) == (1, "OSError: no disk")
        node.bus.leave(bad, politely=True)
        node.consumer("shop", "good")
        await node.publish("2")
        began = world.clock.now()
        await until(lambda: not node.left())
        assert node.ids("good") == ["2", "1"]
        assert world.clock.now() - began < 1.0

    story(tmp_path, body)


def test_after_ten_times_it_is_a_dead_letter_that_a_person_can_retry_or_drop(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        node = await world.node(table={"shop": (Subscription("orders"),)})
        bad = node.consumer("shop", outcome="OSError: no disk")
        began = world.clock.now()
        await node.publish("1", "2")
        await until(lambda: len(node.bus.dead) == 2)
        assert node.ids("shop.0") == ["1", "2"] * 10
        assert 250 < world.clock.now() - began < 270  # 0.5 + 1 + 2 … + 128, and 0.1 each time
        assert node.problems["BUS_DEAD_LETTERS"].startswith("2 messages could not be delivered")
        rows = people.listed(node.bus, dead=True, topic="", instance="", limit=10)
        assert [(r["id"], r["state"], r["attempts"], r["error"]) for r in rows] == [
            ("1", "dead", 10, "OSError: no disk"),
            ("2", "dead", 10, "OSError: no disk"),
        ]
        node.bus.leave(bad, politely=True)
        node.consumer("shop", "good")
        assert await people.drop(node.bus, people.named(node.bus, "2")) == 1
        assert await people.retry(node.bus, people.named(node.bus, "1")) == 1
        await until(lambda: not node.left())
        assert node.ids("good") == ["1"]
        assert "BUS_DEAD_LETTERS" not in node.problems
        assert node.bus.room.count == 0
        with pytest.raises(Missing, match="MESSAGE_UNKNOWN"):
            people.named(node.bus, "1")

    story(tmp_path, body)


def test_a_replica_that_ends_gives_back_what_it_held_and_only_one_counts_as_tried(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        node = await world.node(table={"shop": (Subscription("orders"),)})
        stuck = node.consumer("shop", "stuck", window=3, outcome="")
        await node.publish("1", "2", "3", "4")
        await until(lambda: len(node.got) == 3)
        node.bus.leave(stuck, politely=False)
        tried = {d.id: d.attempts for d in people.everything(node.bus)}
        assert tried == {"1": 1, "2": 0, "3": 0, "4": 0}
        polite = node.consumer("shop", "polite", outcome="")
        await until(lambda: len(node.ids("polite")) == 2)
        node.bus.leave(polite, politely=True)
        assert sum(d.attempts for d in people.everything(node.bus)) == 1
        node.bus.done(stuck, 1)  # too late: it is another's now
        node.consumer("shop")
        await until(lambda: not node.left())
        assert sorted(node.ids("shop.0")) == ["1", "2", "3", "4"]

    story(tmp_path, body)


def test_nothing_waits_for_nobody_for_longer_than_a_minute_and_a_late_subscriber_gets_it(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        node = await world.node(table=None)
        await node.publish("1", "2", topic="news")
        await asyncio.sleep(1000)
        assert node.left() == [(NOBODY, "1"), (NOBODY, "2")]  # no table was read yet: nothing is known
        node.bus.know(Table({"reader": (Subscription("news"),)}))
        await until(lambda: node.left() == [("reader", "1"), ("reader", "2")])
        await node.publish("3", topic="gossip")
        await asyncio.sleep(100)
        assert (NOBODY, "3") in node.left()  # the table was read before it came
        node.bus.know(Table({"reader": (Subscription("news"),)}))
        await until(lambda: (NOBODY, "3") not in node.left())
        assert node.bus.counters.dropped == 1
        node.consumer("reader")
        await until(lambda: not node.left())
        assert node.bus.room.count == 0

    story(tmp_path, body)


def test_what_this_node_runs_subscribes_before_consul_says_so(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        node = await world.node(table={"shop": (Subscription("orders"),)})
        node.bus.know_local({"local": (Subscription("orders"),)})
        await node.publish("1")
        assert node.left() == [("local", "1"), ("shop", "1")]

    story(tmp_path, body)


def test_messages_for_who_left_become_dead_letters(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        node = await world.node()
        await node.publish("1", type="Old")
        node.bus.know(Table({}))
        await asyncio.sleep(300)
        assert not node.bus.dead
        for _ in range(10):
            node.bus.know(Table({}))
            await asyncio.sleep(50)
        (dead,) = node.bus.dead.values()
        assert dead.error == "NOT_SUBSCRIBED nothing called 'shop' subscribes any more"

    story(tmp_path, body)


def test_messages_follow_a_rename(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        node = await world.node(table={"shop": (Subscription("orders"),)})
        stuck = node.consumer("shop", window=1, outcome="")
        await node.publish("1", "2")
        await until(lambda: len(node.got) == 1)
        node.bus.know(Table({"store": (Subscription("orders"),)}, {"shop": "store"}))
        await until(lambda: node.left() == [("shop", "1"), ("store", "2")])  # the first is being worked on
        node.bus.leave(stuck, politely=True)
        node.consumer("store")
        await until(lambda: not node.left())
        assert sorted(node.ids("store.0")) == ["1", "2"]
        assert node.bus.room.count == 0

    story(tmp_path, body)


def test_without_room_publishing_waits_and_goes_on(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        node = await world.node()
        await node.publish(*map(str, range(5)), type="Old")
        waiting = asyncio.create_task(node.publish("5", type="Old"))
        await asyncio.sleep(10)
        assert not waiting.done()
        assert "topic 'orders' holds 5 messages" in node.problems["BUS_BACKLOG"]
        with pytest.raises(Waiting, match="BUS_FULL"):
            node.bus.take_over([Envelope("x", "orders", "Old", b"x", ("shop",))])
        await node.publish("elsewhere", topic="quiet")  # another topic has room of its own
        node.consumer("shop")
        await waiting
        await until(lambda: ("shop", "5") not in node.left() and "BUS_BACKLOG" not in node.problems)
        assert len(node.ids("shop.0")) == 6

    story(tmp_path, body, Limits(topic_count=5))


def test_a_full_topic_of_large_messages_waits_too(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        node = await world.node()
        await node.publish("large", type="Old", size=5000)  # one always fits
        waiting = asyncio.create_task(node.publish("small", type="Old"))
        await asyncio.sleep(10)
        assert not waiting.done()
        node.consumer("shop")
        await waiting
        await until(lambda: not node.left())

    story(tmp_path, body, Limits(topic_bytes=2000, cached_bytes=100))


def test_what_cannot_be_written_is_not_accepted(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        node = await world.node()
        node.store.broken = True
        with pytest.raises(Waiting, match="BUS_WRITE"):
            await node.publish("1")
        assert node.problems["BUS_WRITE"] == "BUS_WRITE the disk is full"
        assert (node.left(), node.bus.room.count) == ([], 0)
        node.store.broken = False
        await node.publish("1", type="Old")
        assert "BUS_WRITE" not in node.problems
        node.store.broken = True
        node.consumer("shop")
        await until(lambda: not node.left() and "BUS_WRITE" in node.problems)
        node.store.broken = False
        await asyncio.sleep(6)  # what was delivered is written down later
        assert node.store.file is not None
        assert node.store.file.deliveries()[0] == []

    story(tmp_path, body)


def test_a_restart_finds_everything_that_was_not_done(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        node = await world.node()
        shop = node.consumer("shop", outcome="OSError: no")
        await node.publish("1", "2")
        await until(lambda: len(node.got) == 4)
        node.bus.leave(shop, politely=True)
        durable = node.store.disk
        await node.stop()
        again = await world.node()
        assert again.left() == [("audit", "1"), ("audit", "2"), ("shop", "1"), ("shop", "2")]
        assert {d.attempts for d in people.everything(again.bus) if d.instance == "shop"} == {1}
        assert {d.error for d in people.everything(again.bus) if d.instance == "shop"} == {"OSError: no"}
        again.consumer("shop")
        again.consumer("audit")
        await until(lambda: not again.left())
        await again.publish("1", "3", type="New")  # ids stay known too, and numbers go on
        await until(lambda: not again.left())
        assert again.ids("audit.0") == ["1", "2", "3"]
        assert durable == 1  # one fsync for both; what is only progress waits for none

    story(tmp_path, body)


def test_without_a_replica_here_messages_go_to_a_node_that_has_one(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        a, b, c = await world.node("a"), await world.node("b"), await world.node("c")
        world.where["shop"] = ["b", "c"]
        b.consumer("shop", "b.shop")
        c.consumer("shop", "c.shop")
        await a.publish(*map(str, range(40)), type="Old")
        await until(lambda: not a.left() and not b.left() and not c.left())
        assert sorted(b.ids("b.shop") + c.ids("c.shop"), key=int) == list(map(str, range(40)))
        assert len(b.got) > 5 < len(c.got)  # spread over both
        assert a.bus.counters.forwarded == 40
        assert a.bus.room.count == 0
        a.consumer("shop", "a.shop")
        await a.publish("here", type="Old")
        await until(lambda: not a.left())
        assert a.ids("a.shop") == ["here"]  # the own node comes first

    story(tmp_path, body)


def test_a_lost_answer_makes_no_second_delivery(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        a, b = await world.node("a"), await world.node("b")
        await world.node("c")
        world.where["shop"] = ["b"]
        world.no_answer.add("b")
        b.consumer("shop")
        await a.publish("1", type="Old")
        await until(lambda: len(b.got) == 1)
        world.where["shop"] = ["b", "c"]  # it goes to b again, which may have it, and not to c
        await asyncio.sleep(3)
        assert a.left() == [("shop", "1")]
        world.no_answer.clear()
        await until(lambda: not a.left() and not b.left())
        assert b.ids("shop.0") == ["1"]
        assert world.nodes["c"].got == []
        assert b.bus.counters.duplicates >= 1

    story(tmp_path, body)


def test_an_unreachable_node_is_tried_again_and_left_when_consul_says_so(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        a, c = await world.node("a"), await world.node("c")
        world.where["shop"] = ["b"]
        world.unreachable.add("b")
        await a.publish(*map(str, range(300)), type="Old")
        await asyncio.sleep(30)
        assert len(a.left()) == 300
        world.where["shop"] = ["c"]
        c.consumer("shop", window=50)
        await until(lambda: not a.left() and not c.left())
        assert sorted(c.ids("shop.0"), key=int) == list(map(str, range(300)))

    story(tmp_path, body)


def test_a_message_that_was_handed_on_may_come_back(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        a, b = await world.node("a"), await world.node("b")
        world.where["shop"] = ["b"]
        await a.publish("1", type="Old")
        await until(lambda: b.left() == [("shop", "1")] and not a.left())
        a.consumer("shop")
        world.where["shop"] = ["a"]
        await until(lambda: a.ids("shop.0") == ["1"] and not a.left() and not b.left())

    story(tmp_path, body)


def test_a_message_that_comes_back_before_the_answer_is_not_lost(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        a, b = await world.node("a"), await world.node("b")
        world.answer_takes = 1.0
        world.where["shop"] = ["a", "b"]  # b hands it back while a still waits to hear that b has it
        await a.publish("1", type="Old")
        await asyncio.sleep(0.5)
        a.consumer("shop")
        await until(lambda: not a.left() and not b.left())
        assert a.ids("shop.0") == ["1"]

    story(tmp_path, body)


def test_nodes_that_hand_on_in_circles_slow_down(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        a, b = await world.node("a"), await world.node("b")
        world.where["shop"] = ["a", "b"]  # Consul is wrong about both
        await a.publish("1", type="Old")
        await asyncio.sleep(100)
        assert len([*a.left(), *b.left()]) == 1
        assert a.bus.counters.forwarded + b.bus.counters.forwarded < 40

    story(tmp_path, body)


def test_a_host_that_is_away_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        a, b = await world.node("a"), await world.node("b")
        a.bus.know_local({"shop": (Subscription("orders"),)})
        world.where["shop"] = ["b"]
        a.bus.leave(a.consumer("shop"), politely=True)
        await a.publish("1", type="Old")
        await asyncio.sleep(0.5)
        a.consumer("shop")
        await until(lambda: not a.left())
        assert a.ids("shop.0") == ["1"]
        assert b.bus.counters.received == 0

    story(tmp_path, body)


def test_a_damaged_file_is_kept_aside_and_said(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        (tmp_path / "a.sqlite").write_bytes(b"this is no database" * 100)
        node = await world.node()
        assert "it is kept as a.sqlite.bad-1" in node.problems["BUS_REBUILT"]
        node.consumer("shop")
        await node.publish("1", type="Old")
        await until(lambda: not node.left())

    story(tmp_path, body)
