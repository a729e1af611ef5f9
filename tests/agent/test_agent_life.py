"""The real Agent on virtual time: commands, long polls, drift, Consul outages, and any order of assignments."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import keys
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.edges import Edges, NodeSettings
from agent.errors import Invalid, Refused, TdieError, Waiting
from agent.expiry import FarClock
from agent.leadership import MOST_AHEAD
from agent.ledger import MemoryLedger, Remembered
from agent.node import Agent
from agent.ordered import Ordered
from agent.refusals import StaleLeader
from agent.register import NameTaken
from agent.wire import (
    Assignment,
    Claim,
    HealthCheck,
    PackageOrder,
    PackageRef,
    ReplicaOrder,
    ReplicaPolicy,
    ReplicaSpec,
    ReplicaState,
    content_digest,
    digest_of,
)
from reconciler.simulation.disk import SimInstaller, SimPorts, SimProber
from reconciler.simulation.keeper import SimKeeper
from reconciler.simulation.machine import Machine
from reconciler.simulation.virtual import VirtualClock, VirtualLoop, run


@dataclass
class Bench:
    """One machine, one Consul, any number of agents on it."""

    clock: VirtualClock = field(default_factory=lambda: VirtualClock(_loop()))
    prober: SimProber = field(default_factory=SimProber)
    missing: set[str] = field(default_factory=set)
    boot_id: str = "boot"

    def __post_init__(self) -> None:
        self.machine = Machine("a", self.clock)
        self.store = Store(now=self.clock.now)
        self.consul = MemoryConsul(self.store)
        self.ledger = MemoryLedger()
        self.starts = 0
        self.tasks: list[asyncio.Task[None]] = []

    def start(self, ledger: MemoryLedger | None = None) -> Agent:
        self.starts += 1
        agent = Agent(
            NodeSettings(cluster="c", node="a", api="http://a:5100", address="a", labels={"zone": "x"}),
            Edges(
                clock=self.clock, consul=self.consul, keeper=SimKeeper(self.machine), ledger=ledger or self.ledger,
                installer=SimInstaller(self.machine, self.missing), ports=SimPorts(), prober=self.prober,
                uniform=lambda low, high: (low + high) / 2, agent=f"agent-{self.starts}", boot_id=self.boot_id,
            ),
        )  # fmt: skip
        self.tasks.append(asyncio.create_task(agent.run(), name=f"agent {self.starts}"))
        return agent

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()


def _loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def story(body: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench()
        try:
            await body(bench)
        finally:
            await bench.stop()

    run(main())


async def until(condition: Callable[[], bool], patience: float = 120.0) -> None:
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.05)


def order(replica: str, version: str = "1.0.0", *, health: str = "none", **settings: object) -> ReplicaOrder:
    package = PackageRef(name="web", version=version, digest=f"digest-{version}")
    spec = ReplicaSpec(package=package, settings=settings)
    policy = ReplicaPolicy(health=HealthCheck.model_validate({"kind": health, "target": "/", "interval": 5.0}))
    return ReplicaOrder(
        replica=replica, instance="web", spec=spec, spec_hash=spec.hash(), policy=policy, commit="0123456789abcdef"
    )


def assignment(*replicas: ReplicaOrder, epoch: int = 1, generation: int = 1, node: str = "a") -> Assignment:
    packages = tuple(
        PackageOrder(package=p) for p in {r.spec.package.digest: r.spec.package for r in replicas}.values()
    )
    return Assignment(
        cluster="c", node=node, epoch=epoch, generation=generation, packages=packages, replicas=replicas,
        digest=content_digest(packages, replicas),
    )  # fmt: skip


def states(agent: Agent) -> dict[str, tuple[str, bool]]:
    return {name: (row.state.value, row.healthy) for name, row in agent.book.rows.items()}


UP = ("Started", True)


def test_from_assignment_to_a_settled_report() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        await agent.claim(Claim(epoch=1))
        accepted = await agent.assign(assignment(order("web.0"), order("web.1")))
        await until(lambda: agent.book.whole().settled)
        report = await agent.report(0, 0, None)
        assert states(agent) == {"web.0": UP, "web.1": UP}
        assert report.accepted == accepted
        assert [p.state for p in report.packages] == ["Installed"]
        assert len({row.port for row in report.replicas}) == 2
        assert report.problems == ()

    story(body)


def test_commands_of_the_wrong_leader_are_refused() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()

        async def code(offered: Assignment) -> str:
            try:
                await agent.assign(offered)
            except TdieError as error:
                return f"{error.status} {error.code}"
            return "200"

        good = assignment(order("web.0"), epoch=3, generation=2)
        assert await code(good) == "409 NOT_CLAIMED"
        await agent.claim(Claim(epoch=3))
        assert await code(good) == "200"
        assert await code(good) == "200"
        assert await code(assignment(epoch=3, generation=2)) == "409 GENERATION_REUSED"
        assert await code(assignment(epoch=3, generation=1)) == "409 STALE_LEADER"
        assert await code(assignment(epoch=2, generation=9)) == "409 STALE_LEADER"
        assert await code(good.model_copy(update={"generation": 3, "digest": "0" * 64})) == "422 DIGEST_MISMATCH"
        assert await code(assignment(epoch=3, generation=3, node="b")) == "422 WRONG_NODE"
        with pytest.raises(StaleLeader) as caught:
            await agent.claim(Claim(epoch=2))
        assert caught.value.epoch == 3
        claimed = await agent.claim(Claim(epoch=5))
        assert claimed.assignment == good
        assert claimed.report.epoch == 5
        assert await code(assignment(epoch=3, generation=3)) == "409 STALE_LEADER"
        await bench.stop()
        again = bench.start()  # everything above survives a restart
        with pytest.raises(StaleLeader):
            await again.claim(Claim(epoch=4))
        assert (await again.claim(Claim(epoch=5))).assignment == good

    story(body)


def test_what_comes_too_late_is_refused() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        far = FarClock.of((await agent.claim(Claim(epoch=1))).report, bench.clock.now())
        offered = assignment(order("web.0"))
        expiry = far.after(10.0, bench.clock.now())
        await asyncio.sleep(9.9)
        await agent.assign(offered, expiry)
        await asyncio.sleep(0.1)
        await agent.assign(offered, expiry)  # once more: it is in force
        changed = assignment(order("web.0", "2.0.0"), generation=2)
        with pytest.raises(Refused, match=r"EXPIRED generation 2 came 0\.0 s too late"):
            await agent.assign(changed, expiry)
        assert agent.assignment == offered
        await bench.stop()
        bench.boot_id = "booted since"
        again = bench.start()
        with pytest.raises(Refused, match="EXPIRED generation 2 came after this machine has booted"):
            await again.assign(changed, far.after(10.0, bench.clock.now()))
        await again.assign(changed, None)  # of a controller that says nothing of it

    story(body)


def test_an_assignment_with_fields_left_out_by_an_older_controller_is_whole() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        await agent.claim(Claim(epoch=1))
        sent = assignment(order("web.0")).model_dump(mode="json", by_alias=True)
        del sent["replicas"][0]["renamedFrom"]
        packages = [p["package"] for p in sent["packages"]]
        sent["digest"] = digest_of({"packages": packages, "replicas": sent["replicas"]})
        await agent.assign(Assignment.model_validate(sent))

    story(body)


def test_long_poll() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        await agent.claim(Claim(epoch=1))
        first = await agent.report(0, 50, None)
        before = bench.clock.now()
        same = await agent.report(first.index, 20, first.agent)
        assert (same.index, same.base, same.replicas) == (first.index, first.index, ())
        assert bench.clock.now() - before == pytest.approx(20)
        waiting = asyncio.create_task(agent.report(first.index, 50, first.agent))
        await asyncio.sleep(0.1)
        await agent.assign(assignment(*(order(f"web.{n}") for n in range(10))))
        news = await waiting
        assert len(news.replicas) == 10  # a burst is one answer
        await until(lambda: agent.book.whole().settled)
        delta = await agent.report(news.index, 50, first.agent)
        assert delta.base == news.index
        assert all(row.index > news.index for row in delta.replicas)
        await agent.assign(assignment(order("web.0"), generation=2))
        await until(lambda: agent.book.whole().settled)
        gone = await agent.report(delta.index, 0, first.agent)
        assert gone.removed == tuple(f"web.{n}" for n in range(1, 10))
        other = await agent.report(delta.index, 50, "another-life")
        assert other.base == 0
        assert [row.replica for row in other.replicas] == ["web.0"]
        ahead = await agent.report(10_000, 50, first.agent)
        assert ahead.base == 0

    story(body)


def test_drift_is_healed_but_never_in_a_hot_loop() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        await agent.claim(Claim(epoch=1))
        await agent.assign(assignment(order("web.0")))
        await until(lambda: agent.book.whole().settled)
        pauses = []
        for _ in range(5):
            bench.machine.stop_by_hand("web.0")
            stopped = bench.clock.now()
            await until(lambda: states(agent)["web.0"] != UP)
            await until(lambda: states(agent)["web.0"] == UP)
            pauses.append(bench.clock.now() - stopped)
        assert pauses[0] < 0.5
        assert pauses[4] > 5

    story(body)


def test_what_is_left_stopped_by_hand_is_started_again_after_a_whole_stop() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        held = order("web.0")
        held = held.model_copy(update={"policy": held.policy.model_copy(update={"heal": False})})
        await agent.claim(Claim(epoch=1))
        await agent.assign(assignment(held, order("web.1")))
        await until(lambda: agent.book.whole().settled)
        bench.machine.stop_by_hand("web.0")
        bench.machine.stop_by_hand("web.1")
        await until(lambda: states(agent)["web.1"] == UP)
        await asyncio.sleep(60)
        assert states(agent)["web.0"] == ("Stopped", False)
        assert await agent.stop_hosts() == ()
        await asyncio.sleep(60)
        assert not bench.machine.rows  # nobody heals them
        await bench.stop()
        again = bench.start()
        await until(lambda: states(again) == {"web.0": UP, "web.1": UP})

    story(body)


class LostLedger(MemoryLedger):
    """A ledger whose file made no sense."""

    async def load(self) -> Remembered:
        return replace(await super().load(), rebuilt="ledger.sqlite could not be used")


def test_without_its_ledger_a_node_asks_consul_who_leads() -> None:
    async def body(bench: Bench) -> None:
        await bench.consul.put(keys.epoch("c"), b"7")
        bench.consul.cut = True
        agent = bench.start(LostLedger())
        with pytest.raises(Waiting, match="EPOCH_UNKNOWN"):
            await agent.claim(Claim(epoch=6))
        bench.consul.cut = False
        await until(lambda: agent.book.whole().epoch == 7)
        with pytest.raises(StaleLeader):
            await agent.claim(Claim(epoch=6))
        await agent.claim(Claim(epoch=7))

    story(body)


def test_failed_stays_failed_until_another_spec_is_ordered() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        await agent.claim(Claim(epoch=1))
        await agent.assign(assignment(order("web.0")))
        await until(lambda: agent.book.whole().settled)
        bench.machine.put(
            replace(bench.machine.rows["web.0"], state="Failed", healthy=False, pid=None, last_error="boom")
        )
        await asyncio.sleep(100)
        assert states(agent) == {"web.0": ("Failed", False)}
        await agent.assign(assignment(order("web.0", "2.0.0"), generation=2))
        await until(lambda: states(agent) == {"web.0": UP})

    story(body)


def test_missing_package_keeps_the_old_process_and_says_why() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        await agent.claim(Claim(epoch=1))
        await agent.assign(assignment(order("web.0")))
        await until(lambda: agent.book.whole().settled)
        pid = bench.machine.rows["web.0"].pid
        bench.missing.add("web@2.0.0")
        await agent.assign(assignment(order("web.0", "2.0.0"), generation=2))
        await asyncio.sleep(30)
        report = agent.book.whole()
        assert bench.machine.rows["web.0"].pid == pid
        assert not report.settled
        assert [p.code for p in report.problems] == ["PACKAGE_MISSING"]
        assert [p.state for p in report.packages] == ["Installed", "Failed"]
        bench.missing.clear()
        await until(lambda: agent.book.whole().settled, 400)
        assert agent.book.whole().problems == ()

    story(body)


def test_a_probe_decides_health_beyond_the_host() -> None:
    class Prober(SimProber):
        error = "http /: answers 500"

        async def probe(self, *_: object) -> str:
            return self.error

    async def body(bench: Bench) -> None:
        bench.prober = prober = Prober()
        agent = bench.start()
        await agent.claim(Claim(epoch=1))
        await agent.assign(assignment(order("web.0", health="http")))
        await until(lambda: agent.book.rows["web.0"].state is ReplicaState.STARTED)
        await asyncio.sleep(30)
        index = agent.book.index
        assert agent.book.rows["web.0"].last_error == "health check: http /: answers 500"
        await asyncio.sleep(60)
        assert agent.book.index == index  # an unchanged result is no news
        prober.error = ""
        await until(lambda: states(agent) == {"web.0": UP})

    story(body)


def test_consul_shows_sentences_and_an_idle_node_writes_nothing() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        await agent.claim(Claim(epoch=1))
        await agent.assign(assignment(order("web.0")))
        await until(lambda: agent.book.whole().settled)
        await asyncio.sleep(1)
        _, (shown,) = await bench.consul.watch_service("web", "c", 0, 0)
        check = next(c for c in shown.checks if c.id == keys.replica_check_id("c", "a", "web.0"))
        assert check.status == "passing"
        assert check.output.startswith("Healthy since 2026-01-01 00:00:0")
        assert "web@1.0.0, commit 01234567, 0 restarts" in check.output
        assert check.notes == check.output
        _, (found,) = await bench.consul.watch_service(keys.AGENT_SERVICE, "c", 0, 0)
        assert found.passing
        assert found.meta[keys.API_META] == "http://a:5100"
        index = bench.store.index
        await asyncio.sleep(300)
        assert bench.store.index == index
        bench.machine.kill_host("web.0")  # same status, another sentence
        await asyncio.sleep(1)
        _, (shown,) = await bench.consul.watch_service("web", "c", 0, 0)
        check = next(c for c in shown.checks if c.id == keys.replica_check_id("c", "a", "web.0"))
        assert "1 restart, last error: killed by signal 9" in check.output
        assert check.notes == check.output
        await agent.assign(assignment(generation=2))
        await until(lambda: not agent.book.rows)
        await asyncio.sleep(1)
        assert set(await bench.consul.local_services()) == {keys.agent_service_id("c", "a")}

    story(body)


def test_wiped_consul_is_told_everything_again_and_no_host_is_touched() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        await agent.claim(Claim(epoch=1))
        await agent.assign(assignment(order("web.0"), order("web.1")))
        await until(lambda: agent.book.whole().settled)
        rows = dict(bench.machine.rows)
        bench.consul.cut = True
        await asyncio.sleep(600)
        assert [p.code for p in agent.book.whole().problems] == ["CONSUL_UNAVAILABLE"]
        bench.consul.store = Store(now=bench.clock.now)
        bench.consul.cut = False
        await asyncio.sleep(15)
        assert agent.book.whole().problems == ()
        assert set(await bench.consul.local_services()) == {
            keys.agent_service_id("c", "a"), *(keys.replica_service_id("c", "a", f"web.{n}") for n in range(2))
        }  # fmt: skip
        held = await bench.consul.get(keys.node("c", "a"))
        assert held is not None
        assert held.session
        assert bench.machine.rows == rows

    story(body)


def test_entries_taken_away_by_hand_come_back_and_left_over_ones_go() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        await agent.claim(Claim(epoch=1))
        await agent.assign(assignment(order("web.0"), order("web.1")))
        await until(lambda: agent.book.whole().settled)
        await asyncio.sleep(1)
        entry = keys.replica_service_id("c", "a", "web.0")
        await bench.consul.deregister(entry)
        await asyncio.sleep(90)
        assert entry in await bench.consul.local_services()
        await bench.stop()
        del bench.machine.rows["web.0"]
        await bench.ledger.save_assignment(assignment(order("web.1"), generation=2), Ordered())
        bench.start()
        await asyncio.sleep(5)
        assert entry not in await bench.consul.local_services()

    story(body)


def test_a_second_agent_of_that_name_is_refused_and_touches_nothing() -> None:
    async def body(bench: Bench) -> None:
        first = bench.start()
        await first.claim(Claim(epoch=1))
        await first.assign(assignment(order("web.0")))
        await until(lambda: first.book.whole().settled)
        await asyncio.sleep(1)
        index, rows = bench.store.index, dict(bench.machine.rows)
        bench.start(MemoryLedger())
        with pytest.raises(
            NameTaken, match=r"AGENT_NAME_TAKEN the name 'a' is held by another agent: api http://a:5100"
        ):
            await bench.tasks.pop()
        assert (bench.store.index, bench.machine.rows) == (index, rows)
        await bench.stop()
        again = bench.start()  # the same ledger: it still holds its name
        await until(lambda: again.ready)
        await asyncio.sleep(1)
        assert states(again) == {"web.0": UP}
        assert bench.machine.rows == rows

    story(body)


def test_a_name_is_free_again_when_its_machine_is_gone_with_its_consul_agent() -> None:
    """Consul's servers go on showing the check of such a machine as it was: only the session's own TTL ends it."""

    async def body(bench: Bench) -> None:
        async def holder() -> str | None:
            held = await bench.consul.get(keys.node("c", "a"))
            return held.session if held is not None else None

        bench.start()
        await asyncio.sleep(100)
        assert await holder()
        await bench.stop()
        bench.store.checks[keys.agent_check_id("c", "a")].expires = None
        await asyncio.sleep(31)
        assert await holder() is None
        again = bench.start(MemoryLedger())
        await until(lambda: again.ready)

    story(body)


def test_without_an_assignment_or_a_keeper_nothing_is_done() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        await agent.claim(Claim(epoch=1))
        await agent.assign(assignment(order("web.0")))
        await until(lambda: agent.book.whole().settled)
        rows = dict(bench.machine.rows)
        await bench.stop()
        bench.store.destroy_session((await bench.ledger.load()).session)
        fresh = bench.start(MemoryLedger())  # a lost ledger
        await asyncio.sleep(10)
        assert bench.machine.rows == rows
        assert states(fresh) == {"web.0": UP}
        bench.machine.up = False
        for listener in bench.machine.listeners:
            listener.put_nowait(None)
        await asyncio.sleep(1)
        assert not fresh.ready
        await fresh.claim(Claim(epoch=2))
        await fresh.assign(assignment(epoch=2))
        await asyncio.sleep(10)
        assert states(fresh) == {"web.0": UP}  # nothing is concluded from a keeper that is away
        assert [p.code for p in fresh.book.whole().problems] == ["KEEPER_UNAVAILABLE"]
        bench.machine.up = True
        await until(lambda: not bench.machine.rows)
        assert fresh.book.whole().problems == ()

    story(body)


def test_since_when_a_spec_is_ordered_outlives_agents_but_no_reboot() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        await agent.claim(Claim(epoch=1))
        first, second = order("web.0"), order("web.1")
        await agent.assign(assignment(first, second))
        began = bench.clock.now()
        await asyncio.sleep(100)
        changed = order("web.0", size=2)
        await agent.assign(assignment(changed, second, generation=2))
        later = bench.clock.now()
        await asyncio.sleep(100)

        def told(of: Agent) -> dict[str, tuple[str, float]]:
            return {name: (row.ordered_hash, row.ordered_since) for name, row in of.book.rows.items()}

        expected = {"web.0": (changed.spec_hash, later), "web.1": (second.spec_hash, began)}
        assert told(agent) == expected
        await bench.stop()
        again = bench.start()
        await until(lambda: again.ready)
        assert told(again) == expected
        await bench.stop()
        bench.boot_id = "another boot"
        boot = bench.clock.now()
        rebooted = bench.start()
        await until(lambda: rebooted.ready)
        assert {since for _, since in told(rebooted).values()} == {boot}

    story(body)


def test_no_claim_puts_a_node_out_of_reach() -> None:
    """An epoch nobody could follow would make the node refuse every later leader."""

    async def body(bench: Bench) -> None:
        agent = bench.start()
        for epoch in (2**63, 10**40, MOST_AHEAD + 1):
            with pytest.raises(Invalid, match="EPOCH_TOO_HIGH"):
                await agent.claim(Claim(epoch=epoch))
        await agent.claim(Claim(epoch=3))
        assert agent.book.whole().epoch == 3
        await agent.claim(Claim(epoch=3 + MOST_AHEAD))

    story(body)


def test_an_unwritable_ledger_accepts_nothing() -> None:
    class Full(MemoryLedger):
        async def save_assignment(self, assignment: Assignment, ordered: Ordered) -> None:
            raise Waiting("disk full", code="LEDGER_WRITE")

    async def body(bench: Bench) -> None:
        agent = bench.start(Full())
        await agent.claim(Claim(epoch=1))
        with pytest.raises(Waiting):
            await agent.assign(assignment(order("web.0")))
        assert agent.book.whole().accepted is None
        await asyncio.sleep(5)
        assert not bench.machine.rows

    story(body)


REPLICAS = st.dictionaries(
    st.sampled_from(["a.0", "b.0", "c.0"]),
    st.tuples(st.sampled_from(["1.0.0", "2.0.0"]), st.integers(0, 2)),
)
HAPPENINGS = st.lists(
    st.tuples(st.floats(0, 1.5), REPLICAS, st.sampled_from(["", "stop", "crash", "restart agent", "cut consul"])),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(HAPPENINGS)
def test_any_interleaving_ends_with_what_was_assigned_last(
    happenings: list[tuple[float, dict[str, tuple[str, int]], str]],
) -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        await agent.claim(Claim(epoch=1))
        wanted: list[ReplicaOrder] = []
        for generation, (pause, replicas, trouble) in enumerate(happenings, start=1):
            wanted = [order(name, version, value=value) for name, (version, value) in sorted(replicas.items())]
            await agent.assign(assignment(*wanted, generation=generation))
            await asyncio.sleep(pause)
            running = [name for name, row in bench.machine.rows.items() if row.state == "Started"]
            if trouble == "stop" and running:
                bench.machine.stop_by_hand(running[0])
            elif trouble == "crash" and running:
                bench.machine.kill_host(running[0])
            elif trouble == "restart agent":
                await bench.stop()
                agent = bench.start()
                await agent.claim(Claim(epoch=1))
            elif trouble == "cut consul":
                bench.consul.cut = not bench.consul.cut
        await asyncio.sleep(0.05)  # what just happened has to reach the agent
        await until(lambda: agent.book.whole().settled, 60)
        rows = bench.machine.rows
        assert {name: (row.spec_hash, row.state) for name, row in rows.items()} == {
            o.replica: (o.spec_hash, "Started") for o in wanted
        }
        assert states(agent) == {o.replica: UP for o in wanted}

    story(body)


def test_another_policy_reaches_the_keeper_once_and_the_process_stays() -> None:
    async def body(bench: Bench) -> None:
        agent = bench.start()
        await agent.claim(Claim(epoch=1))
        await agent.assign(assignment(order("web.0")))
        await until(lambda: bench.machine.rows["web.0"].healthy if "web.0" in bench.machine.rows else False)
        pid = bench.machine.rows["web.0"].pid
        await agent.assign(assignment(order("web.0", health="component"), generation=2))
        await until(lambda: bench.machine.rows["web.0"].order.check_interval > 0)
        await until(lambda: agent.book.whole().settled)
        index = agent.book.index
        await asyncio.sleep(60)
        assert agent.book.index == index
        assert bench.machine.rows["web.0"].pid == pid

    story(body)
