"""Who subscribes and where replicas are: written by a leader, read by agents, remembered while Consul is away."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent import keys
from agent.bus.directory import ConsulDirectory
from agent.bus.store import ThreadStore
from agent.bus.table import Table, table_of
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.consul.protocol import Check, Service
from agent.errors import TdieError
from agent.sdk.message import Subscription
from agent.wire import PackageRef, PublisherSpec, ReplicaSpec, SubscriptionSpec
from reconciler.execution.proven import NotLeading
from reconciler.execution.topics import Topics
from reconciler.model.desired import InstanceSpec
from reconciler.simulation.virtual import VirtualClock, VirtualLoop, run

PACKAGE = PackageRef(name="p", version="1.0.0", digest="d")


def _instance(name: str, *topics: str, publishes: bool = False) -> InstanceSpec:
    publisher = PublisherSpec(package=PACKAGE) if publishes else None
    wanted = tuple(SubscriptionSpec(topic=topic) for topic in topics)
    spec = ReplicaSpec(package=PACKAGE, publisher=publisher, subscribe=wanted)
    return InstanceSpec(name, spec, spec.hash(), replicas=1)


def _instances(*instances: InstanceSpec) -> Mapping[str, InstanceSpec]:
    return {instance.name: instance for instance in instances}


def test_a_table_travels_in_parts_and_names_each_subscriber() -> None:
    table = Table(
        {f"instance-{n}": (Subscription("orders"), Subscription(f"t{n}", "New")) for n in range(3000)},
        {"old": "instance-7"},
    )
    parts = table.parts()
    assert 3 <= len(parts) <= 5
    assert max(map(len, parts)) < 60_000
    assert table_of(parts) == table
    assert table.subscribers("t7", "New") == ("instance-7",)
    assert table.subscribers("t7", "Old") == ()
    assert Table().parts() == (b"[]",)
    for wrong in (b"", b"{}x", b"[[1]]", b'["ab"]'):
        with pytest.raises(TdieError, match="TABLE_INVALID"):
            table_of([wrong])


def test_the_leader_writes_what_git_says_once_and_only_while_it_leads() -> None:
    async def main() -> None:
        consul = MemoryConsul(Store(now=_clock().now))

        async def table() -> Table | None:
            found = await consul.get_all(keys.bus_tables("c"))
            return table_of(entry.value for entry in found) if found else None

        session = await consul.session_create("leader", ttl=None, lock_delay=0)
        assert await consul.acquire(keys.leader("c"), b"{}", session)
        topics = Topics("c", session, consul=consul)
        await topics.publish(_instances(_instance("quiet")))
        assert await table() is None  # a cluster without messages costs no write
        await topics.publish(_instances(_instance("speaks", publishes=True)))
        await topics.publish(_instances(_instance("hears", "orders"), _instance("quiet")))
        assert await table() == Table({"hears": (Subscription("orders"),)})
        (entry,) = await consul.get_all(keys.bus_tables("c"))
        await topics.publish(_instances(_instance("hears", "orders")))
        later = Topics("c", session, consul=consul)
        await later.publish(_instances(_instance("hears", "orders")))
        assert (await consul.get_all(keys.bus_tables("c")))[0].modify_index == entry.modify_index
        many = [_instance(f"i-{n}", f"topic-{n}" * 10) for n in range(1000)]
        await later.publish(_instances(*many))
        assert len(await consul.get_all(keys.bus_tables("c"))) > 1
        await later.publish({})
        assert await table() == Table()
        await consul.session_destroy(session)
        with pytest.raises(NotLeading):
            await later.publish(_instances(_instance("hears", "orders")))
        assert await table() == Table()

    run(main())


def test_agents_follow_the_table_and_keep_the_last_one(tmp_path: Path) -> None:
    async def main() -> None:
        consul, clock = MemoryConsul(Store(now=_clock().now)), _clock()
        known: list[Table] = []
        store = ThreadStoreNow(tmp_path / "bus.sqlite")
        await store.open()
        directory = ConsulDirectory("c", "a", consul=consul, store=store, clock=clock)
        watching = asyncio.create_task(directory.watch(known.append))
        await asyncio.sleep(120)
        assert known == []  # no table at all says nothing
        table = Table({"shop": (Subscription("orders"),)})
        await consul.put(keys.bus_table("c", 0), table.parts()[0])
        await asyncio.sleep(1)
        assert known == [table]
        await consul.delete(keys.bus_tables("c"), recurse=True)  # a wiped Consul takes nothing away
        consul.cut = True
        await asyncio.sleep(100)
        assert set(map(str, known)) == {str(table)}
        await consul_put_uncut(consul, keys.bus_table("c", 0), b"no table")
        await asyncio.sleep(100)
        await consul.put(keys.bus_table("c", 0), Table().parts()[0])
        await asyncio.sleep(100)
        assert known[-1] == Table()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        later = ConsulDirectory("c", "a", consul=consul, store=store, clock=clock)
        assert await later.load() == Table()
        await store.close()

    run(main())


def test_only_nodes_with_a_healthy_replica_count_and_the_last_answer_holds(tmp_path: Path) -> None:
    async def main() -> None:
        consul, clock = MemoryConsul(Store(now=_clock().now)), _clock()
        store = ThreadStoreNow(tmp_path / "bus.sqlite")
        await store.open()
        for node in ("a", "b", "c"):
            await _register(consul, keys.AGENT_SERVICE, f"agent-{node}", node, api=f"http://{node}:5100")
        await _register(consul, "shop", "shop-a", "a")
        await _register(consul, "shop", "shop-b", "b")
        await _register(consul, "shop", "shop-c", "c", status="critical")
        await _register(consul, "shop", "other-b", "b", cluster="another")
        directory = ConsulDirectory("c", "a", consul=consul, store=store, clock=clock)
        assert await directory.nodes("shop") == {"b": "http://b:5100"}
        await consul.check_update("shop-c:check", "passing", "")
        assert await directory.nodes("shop") == {"b": "http://b:5100"}  # asked a moment ago
        await asyncio.sleep(3)
        assert await directory.nodes("shop") == {"b": "http://b:5100", "c": "http://c:5100"}
        consul.cut = True
        await asyncio.sleep(3)
        assert set(await directory.nodes("shop")) == {"b", "c"}
        later = ConsulDirectory("c", "a", consul=consul, store=store, clock=clock)
        await later.load()
        assert set(await later.nodes("shop")) == {"b", "c"}
        assert await later.nodes("unknown") == {}
        await store.close()

    run(main())


class ThreadStoreNow(ThreadStore):
    """The file's work done at once: a thread would bring real time."""

    def do(self, work, *, durable=False):  # type: ignore[no-untyped-def]
        answer = asyncio.get_running_loop().create_future()
        self._file.begin(durable=durable)  # type: ignore[union-attr]
        answer.set_result(work(self._file))
        self._file.commit()  # type: ignore[union-attr]
        return answer


async def consul_put_uncut(consul: MemoryConsul, key: str, value: bytes) -> None:
    consul.cut = False
    await consul.put(key, value)


def _clock() -> VirtualClock:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return VirtualClock(loop)


async def _register(
    consul: MemoryConsul, name: str, id: str, node: str, *, api: str = "", status: str = "passing", cluster: str = "c"
) -> None:
    meta = {keys.CLUSTER_META: cluster, keys.NODE_META: node} | ({keys.API_META: api} if api else {})
    check = Check(id=f"{id}:check", name=id, ttl=1000.0, status=status)  # type: ignore[arg-type]
    await consul.register(Service(id=id, name=name, meta=meta, checks=(check,)))
