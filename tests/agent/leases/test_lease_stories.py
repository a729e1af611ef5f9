"""Leases of real agents on virtual time: one Consul, several machines, and whatever can go wrong between them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from agent import keys
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.consul.protocol import KeyValue
from agent.edges import Edges, NodeSettings
from agent.errors import Waiting
from agent.keeper.protocol import HostRow
from agent.leases.peers import Ack, Ask
from agent.leases.values import Token, read_record
from agent.ledger import MemoryLedger
from agent.node import Agent
from agent.wire import (
    USUAL_LEASES,
    Assignment,
    Claim,
    LeaseStatus,
    NodePolicy,
    PackageOrder,
    PackageRef,
    ReplicaOrder,
    ReplicaPolicy,
    ReplicaSpec,
    content_digest,
    digest_of,
)
from reconciler.simulation.disk import SimInstaller, SimPorts, SimProber
from reconciler.simulation.keeper import SimKeeper
from reconciler.simulation.machine import LIVE, Machine
from reconciler.simulation.virtual import VirtualClock, VirtualLoop, run
from reconciler.simulation.watchers import Nobody

T, D = USUAL_LEASES.ttl, USUAL_LEASES.lock_delay


@dataclass
class Witness(Nobody):
    """Sees every process of the replica and judges: never two at once, and nobody starts who does not know a higher token."""

    clock: VirtualClock
    live: set[str] = field(default_factory=set)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    story: list[tuple[float, str, str]] = field(default_factory=list)

    def row(self, node: str, row: HostRow) -> None:
        if row.replica != "one.0" or row.order.lease is None:
            return
        before = node in self.live
        (self.live.add if row.state in LIVE else self.live.discard)(node)
        assert len(self.live) <= 1, f"two at once at {self.clock.now()}: {self.live}"
        if (node in self.live) != before:
            self.story.append((round(self.clock.now(), 3), node, row.state))
            if not before:
                token = (row.order.lease.epoch, row.order.lease.index)
                assert token >= max(self.tokens, default=(0, 0)), f"token {token} after {self.tokens}"
                self.tokens.append(token)

    def numbers(self) -> list[tuple[int, int]]:
        """Tokens, their numbers replaced by how many different ones there were."""
        order = sorted(set(self.tokens))
        return [(epoch, order.index((epoch, index)) + 1) for epoch, index in self.tokens]

    def began(self) -> list[tuple[float, str]]:
        return [(at, node) for at, node, state in self.story if state == "Starting"]


class Fleet:
    """Machines with agents, told what to run by nobody but the test."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.clock = VirtualClock(loop)
        self.store = Store(now=self.clock.now)
        self.witness = Witness(self.clock)
        self.machines: dict[str, Machine] = {}
        self.ledgers: dict[str, MemoryLedger] = {}
        self.consul: Callable[[Store], MemoryConsul] = MemoryConsul  # as the nodes that start next have it
        self.consuls: dict[str, MemoryConsul] = {}
        self.agents: dict[str, Agent] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.generation = 0
        self.epoch = 3
        self.lives = 0
        self.boots = 0
        self.alone: set[str] = set()  # nodes that other nodes cannot reach
        self.store.put(keys.epoch("c"), b"3")

    def start(self, *names: str) -> None:
        for name in names:
            self.lives += 1
            machine = self.machines.setdefault(name, Machine(name, self.clock, witness=self.witness))
            self.consuls[name] = self.consul(self.store)
            agent = self.agents[name] = Agent(
                NodeSettings(cluster="c", node=name, api=f"http://{name}:5100", address=name),
                Edges(
                    clock=self.clock, consul=self.consuls[name], keeper=SimKeeper(machine),
                    ledger=self.ledgers.setdefault(name, MemoryLedger()), installer=SimInstaller(machine, set()),
                    ports=SimPorts(), prober=SimProber(), uniform=lambda low, high: (low + high) / 2,
                    peers=self, agent=f"{name}-{self.lives}", boot_id=f"boot-{machine.boot}",
                ),
            )  # fmt: skip
            self.tasks[name] = asyncio.create_task(agent.run(), name=f"agent {name}")

    async def failsafe_ack(self, api: str, ask: Ask) -> Ack:
        """Agents ask each other."""
        await asyncio.sleep(0.01)
        name = api.removeprefix("http://").removesuffix(":5100")
        if name not in self.tasks or ask.holder in self.alone or name in self.alone:
            raise Waiting(f"{api} does not answer")
        return await self.agents[name].failsafe_ack(ask)

    async def crash(self, name: str) -> None:
        self.consuls[name].cut = True
        task = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        for name in list(self.tasks):
            await self.crash(name)

    async def order(
        self, name: str, *replicas: str, lease: str = "strict", version: str = "1.0.0", of: str = ""
    ) -> None:
        """The node is told to run these, and nothing else."""
        self.generation += 1
        orders = []
        for replica in replicas:
            package = PackageRef(name="p", version=version, digest=digest_of(version))
            spec = ReplicaSpec(package=package)
            policy = ReplicaPolicy.model_validate({"lease": lease})
            orders.append(
                ReplicaOrder(
                    replica=replica, instance="one", spec=spec, spec_hash=spec.hash(), policy=policy,
                    renamed_from=of or None,
                )
            )  # fmt: skip
        packages = tuple({o.spec.package.digest: PackageOrder(package=o.spec.package) for o in orders}.values())
        await self.agents[name].claim(Claim(epoch=self.epoch))
        await self.agents[name].assign(
            Assignment(
                cluster="c", node=name, epoch=self.epoch, generation=self.generation, packages=packages,
                replicas=tuple(orders), digest=content_digest(packages, orders, NodePolicy()),
            )
        )  # fmt: skip

    def lease(self, name: str, replica: str = "one.0") -> LeaseStatus:
        found = self.agents[name].book.rows[replica].lease
        assert found is not None
        return found

    def running(self, name: str, replica: str = "one.0") -> bool:
        row = self.machines[name].rows.get(replica)
        return row is not None and row.state == "Started"

    async def until(self, true: Callable[[], bool], within: float = 300.0) -> float:
        """How long it took."""
        start = self.clock.now()
        while not true():
            if self.clock.now() - start > within:
                state = {n: a.book.rows for n, a in self.agents.items()}
                raise AssertionError(f"not within {within} s: {state}")
            await asyncio.sleep(0.05)
        return self.clock.now() - start

    async def begin(self, *names: str) -> None:
        """The first of these nodes runs it."""
        self.start(*names)
        await self.order(names[0], "one.0")
        await self.until(lambda: self.running(names[0]))

    def problems(self, name: str) -> dict[str, str]:
        return {problem.code: problem.detail for problem in self.agents[name].book.whole().problems}


def story(body: Callable[[Fleet], Awaitable[None]]) -> None:
    async def main() -> None:
        fleet = Fleet()
        try:
            await body(fleet)
        finally:
            await fleet.close()

    run(main())


def test_the_first_holder_waits_as_if_there_had_been_another_and_says_until_when() -> None:
    async def body(fleet: Fleet) -> None:
        fleet.start("a")
        await fleet.order("a", "one.0")
        await fleet.until(lambda: fleet.lease("a").code == "WAITING_LOCK_DELAY")
        until = fleet.lease("a").until
        assert until == pytest.approx(fleet.clock.now() + D, abs=0.2)
        row = fleet.agents["a"].book.rows["one.0"]
        assert (row.state, row.last_error) == ("Pending", "")
        assert await fleet.until(lambda: fleet.running("a")) == pytest.approx(D, abs=1.0)
        assert fleet.lease("a") == LeaseStatus(state="held", token="{}.{}".format(*fleet.witness.tokens[0]))
        await asyncio.sleep(500)
        assert [node for _, node in fleet.witness.began()] == ["a"]

    story(body)


def test_a_planned_move_hands_over_without_delay() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        await fleet.order("b", "one.0")
        await fleet.until(lambda: fleet.lease("b").code == "WAITING_LEASE")
        assert fleet.lease("b").holder == "a"
        await asyncio.sleep(100)
        assert fleet.running("a")
        await fleet.order("a")
        assert await fleet.until(lambda: fleet.running("b")) < 1.5
        assert fleet.witness.numbers() == [(3, 1), (3, 2)]
        await fleet.order("a", "one.0")  # and back
        await fleet.order("b")
        assert await fleet.until(lambda: fleet.running("a")) < 1.5
        assert fleet.witness.numbers()[-1] == (3, 3)

    story(body)


def test_a_lock_that_is_refused_is_tried_once_a_second_whatever_else_moves() -> None:
    """A node that many assignments reach just then, or that waits for many locks, does not ask Consul for more."""

    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        await fleet.order("b", "one.0")
        await fleet.until(lambda: fleet.lease("b").code == "WAITING_LEASE")
        consul, tries = fleet.consuls["b"], list[float]()
        acquire = consul.acquire

        async def counted(key: str, value: bytes, session: str) -> bool:
            tries.append(fleet.clock.now())
            return await acquire(key, value, session)

        consul.acquire = counted  # type: ignore[method-assign]  # nothing else tells how often it is asked
        await fleet.crash("a")
        fleet.store.destroy_session(fleet.store.entries[keys.lease("c", "one.0")].session)
        await fleet.until(lambda: fleet.lease("b").code == "WAITING_LOCK_DELAY")
        for version in range(40):
            await fleet.order("b", "one.0", version=f"1.0.{version}")
            await asyncio.sleep(0.25)
        assert all(later - before >= 0.8 for before, later in pairwise(tries))
        assert len(tries) >= 8

    story(body)


def test_locks_that_are_refused_to_one_node_are_asked_for_in_turn() -> None:
    """A session that ends with many leases does not make its node ask Consul for each of them every second; none is late for it."""

    async def body(fleet: Fleet) -> None:
        names = ("one.0", *(f"many.{index}" for index in range(49)))
        fleet.start("a")
        await fleet.order("a", *names)
        await fleet.until(lambda: all(fleet.lease("a", name).state == "held" for name in names))
        consul, tries = fleet.consuls["a"], list[float]()
        acquire = consul.acquire

        async def counted(key: str, value: bytes, session: str) -> bool:
            taken = await acquire(key, value, session)
            if not taken:
                tries.append(fleet.clock.now())
            return taken

        consul.acquire = counted  # type: ignore[method-assign]  # nothing else tells how often it is asked
        fleet.store.destroy_session(fleet.store.entries[keys.lease("c", "one.0")].session)
        await fleet.until(lambda: all(fleet.lease("a", name).code == "WAITING_LOCK_DELAY" for name in names))
        began = fleet.clock.now()
        await asyncio.sleep(D - 5)
        assert len([at for at in tries if at > began]) <= 5 * (D - 5) * 1.2
        await fleet.until(lambda: all(fleet.lease("a", name).state == "held" for name in names))
        assert fleet.clock.now() - began <= D + 1

    story(body)


def test_a_node_cut_off_is_fenced_at_its_own_deadline_and_another_starts_after_2t_and_d() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        await fleet.order("b", "one.0")
        await fleet.until(lambda: fleet.lease("b").code == "WAITING_LEASE")
        fleet.consuls["a"].cut = True
        cut = fleet.clock.now()
        await fleet.until(lambda: not fleet.running("a"))
        assert T - 5 - 2 - 5 <= fleet.clock.now() - cut <= T - 5
        await fleet.until(lambda: fleet.lease("a").state == "fenced")
        assert fleet.lease("a").code == "LEASE_EXPIRED"
        assert fleet.problems("a")["FENCED"] == "one.0 LEASE_EXPIRED"
        assert fleet.clock.now() - cut <= T
        await fleet.until(lambda: fleet.running("b"))
        assert 2 * T - 5 + D <= fleet.clock.now() - cut <= 2 * T + D + 3
        fleet.consuls["a"].cut = False  # it comes back, and finds another there
        await fleet.until(lambda: fleet.lease("a").holder == "b")
        await asyncio.sleep(300)
        assert [node for _, node in fleet.witness.began()] == ["a", "b"]
        assert "FENCED" in fleet.problems("a")

    story(body)


def test_reads_that_pass_while_renewals_do_not_keep_nothing_down_once_renewals_pass_again() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a")
        consul = fleet.consuls["a"]
        renew = consul.session_renew

        async def refused(session: str) -> None:
            raise Waiting("no leader", code="CONSUL_UNAVAILABLE")

        consul.session_renew = refused  # type: ignore[method-assign]  # Consul elects, and answers from what it knows
        await fleet.until(lambda: not fleet.running("a"))
        await fleet.until(lambda: fleet.lease("a").state == "fenced")
        await asyncio.sleep(5)
        consul.session_renew = renew  # type: ignore[method-assign]
        assert await fleet.until(lambda: fleet.running("a")) < 5
        assert "FENCED" not in fleet.problems("a")
        assert len(fleet.witness.began()) == 2

    story(body)


def test_a_short_silence_of_consul_costs_nothing_and_a_longer_one_only_a_restart_here() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a")
        fleet.consuls["a"].cut = True
        await asyncio.sleep(17)
        fleet.consuls["a"].cut = False
        await asyncio.sleep(100)
        assert len(fleet.witness.began()) == 1
        fleet.consuls["a"].cut = True
        await asyncio.sleep(T - 6)
        assert not fleet.running("a")
        fleet.consuls["a"].cut = False
        assert await fleet.until(lambda: fleet.running("a")) < 5
        assert fleet.witness.numbers() == [(3, 1), (3, 1)]
        assert "FENCED" not in fleet.problems("a")

    story(body)


def test_a_lease_that_was_over_is_earned_anew_also_if_consul_still_knows_the_session() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a")
        fleet.consuls["a"].cut = True
        await asyncio.sleep(
            T + 15
        )  # it is still there, as Consul waits for twice its time; or is there again, from a snapshot
        fleet.consuls["a"].cut = False
        assert await fleet.until(lambda: fleet.running("a")) == pytest.approx(D, abs=3.0)
        assert fleet.witness.numbers() == [(3, 1), (3, 2)]
        assert "FENCED" not in fleet.problems("a")

    story(body)


def test_an_agent_that_is_back_in_time_takes_its_session_up_and_restarts_nothing() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        await fleet.order("b", "one.0")
        pid = fleet.machines["a"].rows["one.0"].pid
        for away in (0.0, 5.0, 15.0):
            await fleet.crash("a")
            await asyncio.sleep(away)
            fleet.start("a")
            await fleet.until(lambda: fleet.agents["a"].ready and fleet.lease("a").state == "held")
            assert fleet.lease("a").token == "{}.{}".format(*fleet.witness.tokens[0])
        await asyncio.sleep(200)
        assert fleet.machines["a"].rows["one.0"].pid == pid
        await fleet.order("a")
        assert await fleet.until(lambda: fleet.running("b")) < 1.5

    story(body)


def test_an_agent_that_is_away_too_long_finds_its_hosts_ended_by_their_keeper() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        await fleet.order("b", "one.0")
        await fleet.crash("a")
        gone = fleet.clock.now()
        await fleet.until(lambda: "a" not in fleet.witness.live)
        assert fleet.clock.now() - gone <= T
        await fleet.until(lambda: fleet.running("b"))
        fleet.start("a")
        await fleet.until(lambda: fleet.agents["a"].ready and fleet.lease("a").holder == "b")
        await asyncio.sleep(100)
        assert fleet.running("b")

    story(body)


def test_an_agent_back_without_its_session_ends_what_runs_under_it_first() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a")
        await fleet.crash("a")
        for session in list(fleet.store.sessions):
            fleet.store.destroy_session(session)
        fleet.start("a")
        ended = await fleet.until(lambda: "a" not in fleet.witness.live)
        assert ended < 1.0
        assert await fleet.until(lambda: fleet.running("a")) == pytest.approx(D, abs=2.0)
        assert fleet.witness.numbers() == [(3, 1), (3, 2)]

    story(body)


def test_a_revoked_session_ends_its_hosts_at_once_and_the_lock_stays_for_nobody_for_d() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        await fleet.order("b", "one.0")
        await fleet.until(lambda: fleet.lease("b").code == "WAITING_LEASE")
        held = fleet.store.entries[keys.lease("c", "one.0")].session
        revoked = fleet.clock.now()
        fleet.store.destroy_session(held)
        await fleet.until(lambda: "a" not in fleet.witness.live)
        assert fleet.clock.now() - revoked <= 5 + 2 + 5 + 2
        row = fleet.machines["a"].rows["one.0"]
        assert row.fenced == "LEASE_REVOKED"
        await fleet.until(lambda: bool(fleet.witness.live))
        assert D - 1 <= fleet.clock.now() - revoked <= D + 5 + 3  # whoever gets it waits from when it saw it free

    story(body)


def tampered(how: str) -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        await fleet.order("b", "one.0")
        await fleet.until(lambda: fleet.lease("b").code == "WAITING_LEASE")
        key = keys.lease("c", "one.0")
        if how == "deleted":
            fleet.store.delete(key)
        elif how == "written over":
            fleet.store.put(key, b"mine")
        else:
            thief = fleet.store.create_session("thief", ttl=None, node_checks=[])
            fleet.store.delete(key)
            assert fleet.store.acquire(key, b"mine", thief.id)
        at = fleet.clock.now()
        await fleet.until(lambda: "a" not in fleet.witness.live)
        assert fleet.clock.now() - at <= 5 + 2 + 5 + 2
        assert fleet.machines["a"].rows["one.0"].fenced == "LOCK_TAMPERED"
        if how != "stolen":
            await fleet.until(lambda: bool(fleet.witness.live))
            assert fleet.clock.now() - at >= D or how == "written over"

    story(body)


@pytest.mark.parametrize("how", ["deleted", "written over", "stolen"])
def test_a_tampered_lock_is_not_ours_any_more(how: str) -> None:
    tampered(how)


def test_a_lock_that_is_written_over_twice_is_lost_twice() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a")
        for _ in range(2):
            fleet.store.put(
                keys.lease("c", "one.0"), b"mine"
            )  # it keeps our session, and forgets how often it was taken
            await fleet.until(lambda: not fleet.running("a"), 15.0)
            await fleet.until(lambda: fleet.running("a"))

    story(body)


def wipe(fleet: Fleet) -> None:
    """All data is gone; the indexes begin anew."""
    fresh = Store(now=fleet.clock.now)
    for consul in fleet.consuls.values():
        consul.store = fresh
    fleet.store = fresh


def test_a_wiped_consul_is_an_outage_and_who_held_a_lease_takes_it_again() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        await fleet.order("b", "one.0", "two.0")
        await fleet.until(lambda: fleet.running("b", "two.0"))
        pid = fleet.machines["a"].rows["one.0"].pid
        wipe(fleet)
        wiped = fleet.clock.now()
        await fleet.until(lambda: fleet.problems("a").get("CONSUL_EPOCH_LOST", "") != "")
        await asyncio.sleep(20)
        fleet.epoch = 4
        fleet.store.put(keys.epoch("c"), b"4")
        await asyncio.sleep(300)
        assert fleet.machines["a"].rows["one.0"].pid == pid
        assert fleet.lease("a") == LeaseStatus(state="held", token="{}.{}".format(*fleet.witness.tokens[0]))
        record = read_record(await fleet.consuls["a"].get(keys.lease("c", "one.0")))
        assert record is not None
        assert (record.node, record.token) == ("a", Token(*fleet.witness.tokens[0]))
        assert "CONSUL_EPOCH_LOST" not in fleet.problems("a")
        await fleet.order("a")
        await fleet.until(lambda: fleet.running("b"))
        assert fleet.witness.numbers() == [(3, 1), (4, 2)]
        assert fleet.clock.now() > wiped

    story(body)


def between_renewal_and_look(fleet: Fleet, happens: Callable[[], None]) -> None:
    """This happens when a has renewed its session, before it looks whether the lock is still its own."""
    consul, key = fleet.consuls["a"], keys.lease("c", "one.0")
    get = consul.get

    async def unlucky(asked: str) -> KeyValue | None:
        if asked == key:
            vars(consul).pop("get")
            happens()
        return await get(asked)

    vars(consul)["get"] = unlucky


def test_a_session_that_ends_after_its_renewal_was_revoked_and_nobody_meddled_with_the_lock() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a")
        between_renewal_and_look(
            fleet, lambda: fleet.store.destroy_session(str(fleet.store.entries[keys.lease("c", "one.0")].session))
        )
        await fleet.until(lambda: "a" not in fleet.witness.live)
        assert fleet.machines["a"].rows["one.0"].fenced == "LEASE_REVOKED"

    story(body)


def test_a_consul_that_is_wiped_after_a_renewal_is_an_outage_too() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a")
        pid = fleet.machines["a"].rows["one.0"].pid
        between_renewal_and_look(fleet, lambda: wipe(fleet))
        await fleet.until(lambda: fleet.problems("a").get("CONSUL_EPOCH_LOST", "") != "")
        fleet.store.put(keys.epoch("c"), b"4")
        await asyncio.sleep(300)
        assert fleet.lease("a").state == "held"
        assert fleet.machines["a"].rows["one.0"].pid == pid

    story(body)


def test_after_a_wipe_nobody_but_the_holder_takes_a_lock_for_2t_and_d_and_never_without_an_epoch() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        await fleet.order("b", "one.0", "two.0")
        await fleet.until(lambda: fleet.running("b", "two.0"))
        await fleet.crash("a")  # the holder will not come back
        wipe(fleet)
        wiped = fleet.clock.now()
        await asyncio.sleep(2 * T + D - 1)
        assert not fleet.running("b")
        assert fleet.lease("b").code == "CONSUL_EPOCH_LOST"
        await asyncio.sleep(200)
        assert not fleet.running("b")  # no leader has said which epoch this is
        fleet.store.put(keys.epoch("c"), b"4")
        await fleet.until(lambda: fleet.running("b"))
        assert fleet.clock.now() - wiped > 2 * T + D

    story(body)


def test_what_cannot_be_killed_keeps_its_lock() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        await fleet.order("b", "one.0")
        fleet.machines["a"].stuck.add("one.0")
        await fleet.order("a")
        await asyncio.sleep(600)
        assert fleet.lease("b").code == "WAITING_LEASE"
        fleet.machines["a"].stuck.clear()
        fleet.machines["a"].stopped("one.0")
        assert await fleet.until(lambda: fleet.running("b")) < 1.5

    story(body)


def test_a_restarted_machine_gives_its_old_session_up() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a")
        fleet.machines["a"].power_off()
        await fleet.crash("a")
        fleet.witness.live.clear()
        fleet.machines["a"].up = True
        fleet.start("a")
        assert await fleet.until(lambda: fleet.running("a")) == pytest.approx(D, abs=2.5)
        assert len(fleet.store.sessions) == 2  # name and leases: none is left over
        assert fleet.witness.numbers() == [(3, 1), (3, 2)]

    story(body)


def test_who_runs_it_from_before_it_needed_a_lease_is_not_fenced_when_consul_is_away() -> None:
    """Nothing ended there: a leader that heard so would let another node have the lock and run it."""

    async def body(fleet: Fleet) -> None:
        fleet.start("a")
        await fleet.order("a", "one.0", lease="none")
        await fleet.until(lambda: fleet.running("a"))
        await fleet.order("a", "one.0")
        await fleet.until(lambda: fleet.lease("a").code == "WAITING_LOCK_DELAY")
        fleet.consuls["a"].cut = True
        await fleet.until(lambda: fleet.lease("a").code == "CONSUL_UNAVAILABLE")
        assert (fleet.lease("a").state, fleet.running("a")) == ("waiting", True)

    story(body)


def test_a_lease_comes_and_goes_with_its_policy_and_the_process_stays() -> None:
    async def body(fleet: Fleet) -> None:
        fleet.start("a", "b")
        await fleet.order("a", "one.0", lease="none")
        await fleet.until(lambda: fleet.running("a"))
        pid = fleet.machines["a"].rows["one.0"].pid
        assert fleet.agents["a"].book.rows["one.0"].lease is None
        await fleet.order("a", "one.0")
        await fleet.until(lambda: fleet.machines["a"].rows["one.0"].order.lease is not None)
        await fleet.order("a", "one.0", lease="none")
        await fleet.until(lambda: fleet.machines["a"].rows["one.0"].order.lease is None)
        await asyncio.sleep(100)
        assert fleet.machines["a"].rows["one.0"].pid == pid
        assert len(fleet.store.sessions) == 2  # the names: no lease session is left over
        entry = await fleet.consuls["a"].get(keys.lease("c", "one.0"))
        record = read_record(entry)
        assert entry is not None
        assert record is not None
        assert (entry.session, record.released_clean) == (None, False)

    story(body)


def test_a_new_version_keeps_the_lease_and_what_runs_elsewhere_unleased_gives_way() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        await fleet.order("a", "one.0", version="2.0.0")
        await fleet.until(lambda: fleet.machines["a"].rows["one.0"].order.component.version == "2.0.0", 10)
        await fleet.until(lambda: fleet.running("a"), 10)
        assert fleet.witness.numbers() == [(3, 1), (3, 1)]
        await fleet.order("b", "one.0", lease="none")
        await fleet.until(lambda: fleet.running("b"))
        await fleet.order("b", "one.0")
        await fleet.until(lambda: not fleet.running("b"), 10)
        assert fleet.running("a")

    story(body)


def test_a_lock_left_by_an_earlier_life_is_given_back_but_not_called_clean() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        await fleet.order("a", "two.0", "one.0")
        await fleet.until(lambda: fleet.running("a", "two.0"))
        await fleet.crash("a")
        held = fleet.ledgers["a"]
        fleet.machines["a"].rows.pop("one.0")
        fleet.witness.live.clear()
        remembered = await held.load()
        assert remembered.assignment is not None
        rest = tuple(order for order in remembered.assignment.replicas if order.replica == "two.0")
        await held.save_assignment(remembered.assignment.model_copy(update={"replicas": rest}), remembered.ordered)
        fleet.start("a")
        await fleet.order("b", "one.0")
        assert await fleet.until(lambda: fleet.running("b")) == pytest.approx(D, abs=3.0)
        assert fleet.running("a", "two.0")

    story(body)


def test_a_lock_that_comes_back_with_an_old_snapshot_is_given_back_by_who_does_not_need_it() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        await fleet.order("a", "two.0", "one.0")
        await fleet.until(lambda: fleet.running("a", "two.0"))
        key = keys.lease("c", "one.0")
        old = fleet.store.entries[key]
        await fleet.order("b", "one.0")
        await fleet.order("a", "two.0")
        await fleet.until(lambda: fleet.running("b"))
        fleet.store.entries[key] = old
        await fleet.until(lambda: not fleet.running("b"), 20.0)
        assert await fleet.until(lambda: fleet.running("b")) < 60.0 + D + 10.0
        assert fleet.running("a", "two.0")

    story(body)


def test_a_lock_of_ours_that_comes_back_with_an_old_snapshot_gives_a_new_token() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a")
        key = keys.lease("c", "one.0")
        old = fleet.store.entries[key]
        fleet.store.delete(key)
        await fleet.until(lambda: not fleet.running("a"))
        await fleet.until(lambda: fleet.running("a"))
        fleet.store.entries[key] = old
        await fleet.until(lambda: not fleet.running("a"))
        await fleet.until(lambda: fleet.running("a"))
        assert fleet.witness.numbers() == [(3, 1), (3, 2), (3, 3)]

    story(body)


def test_an_agent_that_stops_its_hosts_gives_its_leases_back() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        await fleet.order("b", "one.0")
        await fleet.until(lambda: fleet.lease("b").code == "WAITING_LEASE")
        assert await fleet.agents["a"].stop_hosts() == ()
        task = fleet.tasks.pop("a")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await fleet.agents["a"].leave()
        assert await fleet.until(lambda: fleet.running("b")) < 1.5

    story(body)


def test_a_rename_takes_the_process_over_under_the_new_lease() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a")
        pid = fleet.machines["a"].rows["one.0"].pid
        await fleet.order("a", "neo.0", of="one.0")
        await fleet.until(lambda: fleet.running("a", "neo.0"))
        assert fleet.machines["a"].rows["neo.0"].pid == pid
        await fleet.until(lambda: fleet.store.entries[keys.lease("c", "one.0")].session == "")
        assert fleet.store.entries[keys.lease("c", "neo.0")].session != ""

    story(body)


def test_a_token_grows_also_where_somebody_deleted_the_lock_and_with_it_all_that_was_known() -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.begin("a", "b")
        for _ in range(3):  # the token is well above what a new lock begins with
            await fleet.order("b", "one.0")
            await fleet.order("a")
            await fleet.until(lambda: fleet.running("b"))
            await fleet.order("a", "one.0")
            await fleet.order("b")
            await fleet.until(lambda: fleet.running("a"))
        fleet.store.delete(keys.lease("c", "one.0"))
        await fleet.order("a")
        await fleet.until(lambda: not fleet.witness.live)
        fleet.start("new")  # it has never seen the lock
        await fleet.order("new", "one.0")
        await fleet.until(lambda: fleet.running("new"))
        assert fleet.witness.tokens[-1] > fleet.witness.tokens[-2]

    story(body)


def test_an_assignment_that_comes_while_the_agent_ends_begins_nothing() -> None:
    async def body(fleet: Fleet) -> None:
        fleet.start("a")
        await asyncio.sleep(1.0)
        leases = fleet.agents["a"]._leases
        await fleet.crash("a")
        leases.wanted = lambda _replica: True  # type: ignore[assignment]  # as the assignment says
        leases.look(("one.0",))
        assert leases.status("one.0") == LeaseStatus(state="waiting", code="CONSUL_UNAVAILABLE")

    story(body)
