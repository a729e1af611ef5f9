"""What the loop must not lose between two looks; on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from structlog.testing import capture_logs

from agent import keys
from agent.errors import Waiting
from reconciler import answers
from reconciler.execution.locks import NodeLocks
from reconciler.simulation import virtual
from reconciler.simulation.script import Stage
from reconciler.simulation.watchers import LooksAway
from reconciler.simulation.world import CLUSTER, World


class Asked(LooksAway):
    """Counts what controllers ask Consul."""

    by_controllers = 0

    def called(self, who: str) -> None:
        self.by_controllers += who.startswith("one-")


async def begun() -> Stage:
    stage = Stage(World())
    for number, line in enumerate(("fleet a", "controller one", "commit web@1.0 on 1", "settle")):
        await stage.do(number, line)
    return stage


def test_a_push_during_a_look_is_not_left_to_the_timer() -> None:
    async def story() -> str:
        stage = await begun()
        stage.world.source.look_takes = 1.0
        await stage.do(0, "commit web@1.1 on 1")
        await asyncio.sleep(0.5)  # the loop is looking at the first commit
        await stage.do(0, "commit web@1.2 on 1")
        left = await stage.do(0, "settle within 10s")
        shown = await stage.do(0, "show")
        await stage.world.close()
        return left + shown

    assert virtual.run(story()) == "a: web.0 web@1.2.0"


def test_a_leader_waits_once_for_nodes_that_a_new_consul_does_not_know() -> None:
    async def story() -> list[bool]:
        stage = await begun()
        there = []
        for seconds in (30.0, 30.0):
            there.append(keys.fresh(CLUSTER) in stage.world.store.entries)
            await asyncio.sleep(seconds)
        there.append(keys.fresh(CLUSTER) in stage.world.store.entries)
        await stage.world.close()
        return there

    assert virtual.run(story()) == [True, True, False]


def test_a_target_whose_lock_was_taken_for_a_moment_is_sent_later(monkeypatch: pytest.MonkeyPatch) -> None:
    take = NodeLocks.take
    refused: list[list[str]] = []

    async def once_refused(locks: NodeLocks, nodes: Iterable[str], why: str) -> frozenset[str]:
        if not refused:
            refused.append(sorted(nodes))
            return frozenset()  # held by somebody who let go before the watch could show it
        return await take(locks, nodes, why)

    async def story() -> str:
        stage = await begun()
        monkeypatch.setattr(NodeLocks, "take", once_refused)
        await stage.do(0, "commit web@1.1 on 1")
        left = await stage.do(0, "settle within 10s")
        await stage.world.close()
        return left

    assert virtual.run(story()) == ""
    assert refused == [["a"]]


def test_the_longer_consul_is_away_the_less_a_controller_asks() -> None:
    async def story() -> tuple[int, str, float]:
        stage = await begun()
        world, asked = stage.world, Asked()
        world.watcher = asked
        await stage.do(0, "consul away")
        await asyncio.sleep(600)
        told, count = world.controllers["one"].loop.board.error, asked.by_controllers
        await stage.do(0, "consul back")
        began = world.clock.now()
        await world.until(lambda: world.leader() is not None, 60)
        await world.close()
        return count, told, world.clock.now() - began

    count, told, took = virtual.run(story())
    assert 20 < count < 600 / 4 + 20
    assert "CONSUL_UNAVAILABLE" in told
    assert took < 5


def test_a_new_leader_says_what_it_goes_on_with_before_it_sends_anything() -> None:
    async def story() -> tuple[list[str], list[int]]:
        stage = Stage(World())
        rollout = "on 4, at most 1 down"
        for line in ("fleet a b", "controller one", "controller two", f"commit web@1.0 {rollout}", "settle"):
            await stage.do(0, line)
        await stage.do(0, f"commit web@1.1 {rollout}")
        await asyncio.sleep(2.0)  # one of four, or two
        first = next(name for name, each in stage.world.controllers.items() if each.loop.board.term is not None)
        await stage.world.crash_controller(first)
        await stage.do(0, "settle")
        (second,) = stage.world.controllers.values()
        events = list(second.loop.board.events)
        await stage.world.close()
        said = [event.code for event in events if event.code in ("LEADING", "PLAN_RESUMED", "SENT")]
        return said[:3], [event.fields["left"] for event in events if event.code == "PLAN_RESUMED"]

    said, left = virtual.run(story())
    assert said == ["LEADING", "PLAN_RESUMED", "SENT"]
    assert left in ([1], [2], [3])


def steps_of(stage: Stage) -> list[tuple[str, str]]:
    """What the controller tells of what it sent for the second commit."""
    events = stage.world.controllers["one"].loop.board.events
    words = [(event.code, event.detail) for event in events if event.code.startswith(("STEP", "SENT", "NOT_SENT"))]
    return words[1:]


def test_what_was_not_answered_in_time_may_have_arrived_until_the_node_tells_that_it_has_it() -> None:
    async def story() -> tuple[list[tuple[str, str]], str]:
        stage = await begun()
        stage.world.mute("a")
        await stage.do(0, "commit web@1.1 on 1")
        await asyncio.sleep(30.0)
        stage.world.heal("a")
        await stage.do(0, "settle")
        words, shown = steps_of(stage), await stage.do(0, "show")
        await stage.world.close()
        return words, shown

    words, shown = virtual.run(story())
    assert [code for code, _ in words] == ["STEP_TIMEOUT", "STEP_DONE", "SENT"]
    assert words[0][1].startswith("a: assignment 1.2, attempt 1, may have arrived: UNREACHABLE")
    assert words[1][1] == "a: assignment 1.2 had arrived"
    assert words[2][1] == "a: assignment 1.3: replace web.0"  # 1.2 fetched the package
    assert shown == "a: web.0 web@1.1.0"


def test_an_answer_that_is_lost_leaves_a_step_unknown_until_the_node_tells_that_it_has_it() -> None:
    async def story() -> list[tuple[str, str]]:
        stage = await begun()
        stage.world.lossy = 1.0
        await stage.do(0, "commit web@1.1 on 1")
        await stage.do(0, "settle")
        words = steps_of(stage)
        await stage.world.close()
        return words

    words = virtual.run(story())
    assert [code for code, _ in words] == ["STEP_UNKNOWN", "STEP_DONE"] * 2  # to fetch, and to replace
    assert [detail.split(", ")[1].split()[1] for _, detail in words[::2]] == ["1", "1"], "what was answered counts anew"


def test_attempts_that_a_slow_node_does_not_answer_are_counted() -> None:
    async def story() -> list[int]:
        stage = await begun()
        stage.world.slow("a", 60.0)
        await stage.do(0, "commit web@1.1 on 1")
        await asyncio.sleep(600.0)
        stage.world.heal("a")
        await stage.do(0, "settle")
        events = stage.world.controllers["one"].loop.board.events
        await stage.world.close()
        return [event.fields["attempt"] for event in events if event.code == "STEP_TIMEOUT"]

    attempts = virtual.run(story())
    assert len(attempts) > 1
    assert attempts == list(range(1, len(attempts) + 1))


async def said_of(*lines: str) -> list[str]:
    """What the controller tells, without how many changes are left."""
    stage = Stage(World())
    for line in ("fleet a b c", "controller one", "commit web@1.0 on 3", "settle", *lines):
        await (asyncio.sleep(float(line)) if line.isdigit() else stage.do(0, line))
    events = stage.world.controllers["one"].loop.board.events
    await stage.world.close()
    return [
        f"{event.code} {event.detail}" for event in events if event.code not in ("CHANGING", "CONVERGED", "HEALTHY")
    ]


def test_what_a_lost_node_brings_about_is_told_in_the_order_in_which_it_happens() -> None:
    with capture_logs() as logged:
        said = virtual.run(said_of("power off a", "60", "settle", "power on a", "60"))
    silent = "our poll gets no answer (UNREACHABLE)"
    missed = f"its check in Consul is critical; {silent}"
    assert said == [
        "LEADING leads with epoch 1",
        "COMMIT_IN_FORCE commit 00000000 is in force: commit 1",
        "SENT a: assignment 1.1: fetch web@1.0.0, start web.0",
        "SENT b: assignment 1.1: fetch web@1.0.0, start web.1",
        "SENT c: assignment 1.1: fetch web@1.0.0, start web.2",
        f"UNREACHABLE a: {silent}",
        f"AGENT_DOWN a: {missed}",
        f"NODE_LOST a: {missed}",
        "SENT b: assignment 1.2: start web.0 (node a lost)",
        f"UNREACHABLE a: {silent}",
        "NODE_BACK a: is alive again",
        "SENT a: assignment 1.2: stop web.0 (superseded by the one on b)",
    ]
    lines = [f"{line['event']} {line['detail']}" for line in logged if "detail" in line]
    assert set(said) <= set(lines)
    levels = {line["event"]: line["log_level"] for line in logged if "detail" in line}
    assert (levels["NODE_LOST"], levels["NODE_BACK"]) == ("warning", "info")


def test_trouble_that_comes_again_is_told_again() -> None:
    async def story() -> list[str]:
        stage = await begun()
        board = stage.world.controllers["one"].loop.board
        for version in ("1.1", "1.2"):
            for _ in range(3):
                board.trouble(Waiting("no answer", code="CONSUL_UNAVAILABLE", where="x"))
            await stage.do(0, f"commit web@{version} on 1")
            await stage.do(0, "settle")
        await stage.world.close()
        return [event.detail for event in board.events if event.code == "CONSUL_UNAVAILABLE"]

    assert virtual.run(story()) == ["x: no answer", "x: no answer"]


def test_who_leads_again_tells_nothing_of_what_was_true_when_it_led_before() -> None:
    async def story() -> list[tuple[str, bool, bool]]:
        stage = await begun()
        world, seen = stage.world, list[tuple[str, bool, bool]]()
        board = world.controllers["one"].loop.board

        def look() -> None:
            rows = board.observed.nodes["a"].replicas if board.observed is not None else {}
            stale = "web.0" in rows and rows["web.0"].restarts == 0
            seen.append((board.events[-1].code, answers.converged(board), stale))

        await stage.do(0, "controller two")
        world.pause_controller("one", True)
        await world.until(lambda: world.controllers["two"].loop.board.term is not None, 60)
        await stage.do(0, "settle")
        await stage.do(0, "kill web.0")
        await stage.do(0, "settle")
        world.pause_controller("one", False)
        await asyncio.sleep(10.0)
        board.listen(look)
        await world.crash_controller("two")
        await world.until(lambda: board.term is not None and answers.converged(board), 60)
        await world.close()
        return seen

    seen = virtual.run(story())
    assert seen[0][0] == "LEADING"
    assert not any(stale for _, _, stale in seen)
