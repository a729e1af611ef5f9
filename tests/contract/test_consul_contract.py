"""The contract of a Consul, told once and kept by the embedded server, the one in memory, and a real one."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import pytest

from agent.consul.address import Address
from agent.consul.client import ConsulClient
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.consul.protocol import (
    Check,
    CheckGone,
    CheckHealth,
    Consul,
    Service,
    ServiceHealth,
    SessionGone,
    TxnOp,
    TxnRefused,
)
from agent.errors import Refused, Waiting

T = TypeVar("T")
NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(params=["memory", "embedded", pytest.param("real", marks=pytest.mark.consul)])
async def consul(request: pytest.FixtureRequest) -> AsyncIterator[Consul]:
    if request.param == "memory":
        yield MemoryConsul(Store(time.monotonic, session_ttl_min=1.0))
        return
    server = request.getfixturevalue({"embedded": "consul_server", "real": "real_consul"}[request.param])
    client = ConsulClient(Address.parse(server.http))
    yield client
    await client.close()


@pytest.fixture
def root() -> str:
    """Keys of this test only."""
    return f"contract/{uuid.uuid4()}/"


@pytest.fixture
def cluster() -> str:
    return f"c-{uuid.uuid4().hex[:12]}"


async def until(read: Callable[[], Awaitable[T]], wanted: Callable[[T], bool], within: float = 10.0) -> T:
    """What was read once it is as wanted."""
    async with asyncio.timeout(within):
        while not wanted(found := await read()):
            await asyncio.sleep(0.02)
        return found


# ------------------------------------------------------------------------------------------------------------ keys


async def test_a_key_is_written_read_and_deleted(consul: Consul, root: str) -> None:
    assert await consul.get(root + "a") is None
    assert await consul.put(root + "a", b"\x00\xff")
    found = await consul.get(root + "a")
    assert found is not None
    assert (found.key, found.value, found.session, found.lock_index) == (root + "a", b"\x00\xff", None, 0)
    assert found.create_index == found.modify_index > 0
    assert await consul.delete(root + "a")
    assert await consul.delete(root + "a")
    assert await consul.get(root + "a") is None


async def test_keys_below_a_prefix_come_in_order(consul: Consul, root: str) -> None:
    assert await consul.get_all(root) == ()
    for name in ("b", "a/2", "a/10", "c"):
        await consul.put(root + name, name.encode())
    assert [each.value for each in await consul.get_all(root)] == [b"a/10", b"a/2", b"b", b"c"]
    assert [each.value for each in await consul.get_all(root + "a/")] == [b"a/10", b"a/2"]
    await consul.delete(root + "a/", recurse=True)
    assert [each.value for each in await consul.get_all(root)] == [b"b", b"c"]


async def test_names_are_kept_as_they_are(consul: Consul, root: str) -> None:
    for name in ("space d", "percent%2F", "ünïcode", "question?", "hash#", "plus+"):
        await consul.put(root + name, name.encode())
        found = await consul.get(root + name)
        assert found is not None
        assert found.value == name.encode()
    assert len(await consul.get_all(root)) == 6


async def test_compare_and_set(consul: Consul, root: str) -> None:
    key = root + "k"
    assert await consul.put(key, b"1", cas=0)
    assert not await consul.put(key, b"2", cas=0)
    first = await consul.get(key)
    assert first is not None
    assert await consul.put(key, b"2", cas=first.modify_index)
    assert not await consul.put(key, b"3", cas=first.modify_index)
    assert not await consul.delete(key, cas=first.modify_index)
    second = await consul.get(key)
    assert second is not None
    assert (second.value, second.create_index) == (b"2", first.create_index)
    assert await consul.delete(key, cas=second.modify_index)


async def test_an_equal_write_moves_no_index(consul: Consul, root: str) -> None:
    await consul.put(root + "k", b"same")
    before = await consul.get(root + "k")
    await consul.put(root + "k", b"same")
    assert await consul.get(root + "k") == before


async def test_a_value_has_a_limit(consul: Consul, root: str) -> None:
    assert await consul.put(root + "k", b"x" * 524_288)
    with pytest.raises(Refused):
        await consul.put(root + "k", b"x" * 524_289)
    found = await consul.get(root + "k")
    assert found is not None
    assert len(found.value) == 524_288


# ---------------------------------------------------------------------------------------------------------- watches


async def test_a_watch_wakes_on_a_write_and_on_a_delete(consul: Consul, root: str) -> None:
    key = root + "k"
    await consul.put(key, b"1")
    index, found = await consul.watch(key, 0, 5)
    assert found is not None
    for change in (consul.put(key, b"2"), consul.delete(key), consul.put(key, b"3")):
        watching = asyncio.create_task(consul.watch(key, index, 20))
        await asyncio.sleep(0.05)
        assert not watching.done()
        started = time.monotonic()
        await change
        newer, found = await watching
        assert time.monotonic() - started < 3
        assert newer > index
        index = newer
    assert found is not None
    assert found.value == b"3"


async def test_a_watch_ends_after_its_wait_with_the_same_index(consul: Consul, root: str) -> None:
    await consul.put(root + "k", b"1")
    index, _ = await consul.watch(root + "k", 0, 5)
    started = time.monotonic()
    same, found = await consul.watch(root + "k", index, 0.5)
    assert 0.3 < time.monotonic() - started < 1.5
    assert same == index
    assert found is not None


async def test_a_watch_of_nothing_wakes_when_it_appears(consul: Consul, root: str) -> None:
    index, found = await consul.watch(root + "later", 0, 1)
    assert found is None
    assert index >= 1
    watching = asyncio.create_task(consul.watch(root + "later", index, 20))
    await asyncio.sleep(0.05)
    await consul.put(root + "later", b"here")
    _, found = await watching
    assert found is not None


async def test_a_watch_of_a_prefix_wakes_on_any_key_below(consul: Consul, root: str) -> None:
    await consul.put(root + "a", b"1")
    index, _ = await consul.watch_all(root, 0, 5)
    watching = asyncio.create_task(consul.watch_all(root, index, 20))
    await asyncio.sleep(0.05)
    await consul.delete(root + "a")
    newer, found = await watching
    assert found == ()
    assert newer > index


async def test_an_index_from_before_a_restore_is_reset(consul: Consul, root: str) -> None:
    await consul.put(root + "k", b"1")
    index, found = await consul.watch(root + "k", 10**9, 0.3)
    assert index == 0
    assert found is not None


async def test_a_cancelled_watch_leaves_nothing_behind(consul: Consul, root: str) -> None:
    await consul.put(root + "k", b"1")
    index, _ = await consul.watch(root + "k", 0, 1)
    watching = asyncio.create_task(consul.watch(root + "k", index, 60))
    await asyncio.sleep(0.05)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert await consul.put(root + "k", b"2")


# --------------------------------------------------------------------------------------------------- locks, sessions


async def test_one_session_holds_a_lock(consul: Consul, root: str) -> None:
    key = root + "lock"
    one = await consul.session_create("one", ttl=None, lock_delay=0)
    two = await consul.session_create("two", ttl=None, lock_delay=0)
    assert await consul.acquire(key, b"one", one)
    assert not await consul.acquire(key, b"two", two)
    assert await consul.acquire(key, b"one again", one)
    held = await consul.get(key)
    assert held is not None
    assert (held.session, held.value, held.lock_index) == (one, b"one again", 1)
    assert not await consul.release(key, b"", two)
    assert await consul.release(key, b"free", one)
    assert await consul.acquire(key, b"two", two)
    held = await consul.get(key)
    assert held is not None
    assert (held.session, held.lock_index) == (two, 2)
    for session in (one, two):
        await consul.session_destroy(session)


async def test_a_lock_with_a_session_that_does_not_exist(consul: Consul, root: str) -> None:
    with pytest.raises(SessionGone):
        await consul.acquire(root + "lock", b"", NOBODY)


async def test_an_overwritten_lock_keeps_its_session(consul: Consul, root: str) -> None:
    session = await consul.session_create("holder", ttl=None, lock_delay=0)
    await consul.acquire(root + "lock", b"mine", session)
    await consul.put(root + "lock", b"written by somebody")
    held = await consul.get(root + "lock")
    assert held is not None
    assert (held.session, held.value) == (session, b"written by somebody")
    await consul.session_destroy(session)


async def test_the_end_of_a_session_frees_or_deletes_and_delays(consul: Consul, root: str) -> None:
    keeps = await consul.session_create("keeps", ttl=None, lock_delay=0.5)
    drops = await consul.session_create("drops", ttl=None, lock_delay=0, behavior="delete")
    other = await consul.session_create("other", ttl=None, lock_delay=0)
    await consul.acquire(root + "keeps", b"v", keeps)
    await consul.acquire(root + "drops", b"v", drops)
    await consul.session_destroy(keeps)
    ended = time.monotonic()
    await consul.session_destroy(drops)
    left = await consul.get(root + "keeps")
    assert left is not None
    assert (left.session, left.value) == (None, b"v")
    assert await consul.get(root + "drops") is None
    assert await consul.acquire(root + "drops", b"v", other)
    assert not await consul.acquire(root + "keeps", b"v", other)
    await until(lambda: consul.acquire(root + "keeps", b"v", other), bool)
    assert 0.4 < time.monotonic() - ended < 3
    await consul.session_destroy(other)


async def test_a_session_lives_while_it_is_renewed_and_ends_between_one_and_two_ttl(consul: Consul, root: str) -> None:
    session = await consul.session_create("beating", ttl=1, lock_delay=0)
    await consul.acquire(root + "lock", b"v", session)
    for _ in range(6):
        await consul.session_renew(session)
        await asyncio.sleep(0.4)
    last = time.monotonic()
    await consul.session_renew(session)
    info = await consul.session_info(session)
    assert info is not None
    assert (info.name, info.ttl, info.lock_delay, info.behavior) == ("beating", 1.0, 0.0, "release")
    index, _ = await consul.watch(root + "lock", 0, 1)
    _, held = await consul.watch(root + "lock", index, 10)
    assert 0.9 < time.monotonic() - last < 4
    assert held is not None
    assert held.session is None
    assert await consul.session_info(session) is None
    with pytest.raises(SessionGone):
        await consul.session_renew(session)


async def test_a_ttl_below_the_minimum_is_refused(consul: Consul) -> None:
    with pytest.raises(Refused):
        await consul.session_create("short", ttl=0.5, lock_delay=0)


# ------------------------------------------------------------------------------------------------------ transactions


async def test_a_transaction_is_fenced_by_a_session(consul: Consul, root: str) -> None:
    session = await consul.session_create("leader", ttl=None, lock_delay=0)
    await consul.acquire(root + "leader", b"me", session)
    ops = [TxnOp("check-session", root + "leader", session=session), TxnOp("cas", root + "epoch", b"1", index=0)]
    done = await consul.txn(ops)
    assert [each.key for each in done] == [root + "leader", root + "epoch"]
    with pytest.raises(TxnRefused):
        await consul.txn(ops)
    await consul.session_destroy(session)
    with pytest.raises(TxnRefused):
        await consul.txn([ops[0], TxnOp("set", root + "epoch", b"2")])
    epoch = await consul.get(root + "epoch")
    assert epoch is not None
    assert epoch.value == b"1"


async def test_a_transaction_happens_whole_or_not_at_all(consul: Consul, root: str) -> None:
    await consul.put(root + "there", b"1")
    with pytest.raises(TxnRefused):
        await consul.txn(
            [TxnOp("set", root + "new", b"1"), TxnOp("delete", root + "there"), TxnOp("get", root + "missing")]
        )
    assert [each.key for each in await consul.get_all(root)] == [root + "there"]
    done = await consul.txn(
        [
            TxnOp("check-not-exists", root + "new"),
            TxnOp("set", root + "new", b"1"),
            TxnOp("get-tree", root),
            TxnOp("delete-tree", root),
        ]
    )
    assert [(each.key, each.value) for each in done] == [
        (root + "new", b""),
        (root + "new", b"1"),
        (root + "there", b"1"),
    ]
    assert await consul.get_all(root) == ()


async def test_a_transaction_that_nobody_understands(consul: Consul, root: str) -> None:
    with pytest.raises(TxnRefused):
        await consul.txn([TxnOp("bogus", root + "k")])


# ------------------------------------------------------------------------------------------------- services, checks


def agent_service(cluster: str, *, ttl: float = 30.0, notes: str = "", port: int = 5100) -> Service:
    name = f"tdie/{cluster}/n1"
    beat = Check(f"{name}:beat", "beats", ttl=ttl, notes=notes)
    return Service(
        name, f"agent-{cluster}", "10.0.0.1", port, (f"cluster={cluster}",), {"tdie-cluster": cluster}, (beat,)
    )


def replica_service(cluster: str) -> Service:
    name = f"tdie/{cluster}/n1/web.0"
    checks = (
        Check(f"{name}:state", "state", ttl=300, status="passing"),
        Check(f"{name}:agent", "agent", alias_service=f"tdie/{cluster}/n1"),
    )
    return Service(name, f"web-{cluster}", "10.0.0.1", 5001, (), {"tdie-cluster": cluster}, checks)


async def checks_become(consul: Consul, cluster: str, wanted: dict[str, str]) -> tuple[CheckHealth, ...]:
    """The checks of a cluster once they have these states (by the last part of their id)."""
    index = 0
    async with asyncio.timeout(10):
        while True:
            index, checks = await consul.watch_checks(cluster, index, 5)
            if {each.id.rpartition("/")[2]: each.status for each in checks} == wanted:
                return checks


async def test_a_service_is_registered_seen_and_deregistered(consul: Consul, cluster: str) -> None:
    service = agent_service(cluster)
    await consul.register(service)
    assert (await consul.local_services())[service.id].meta == {"tdie-cluster": cluster}
    entries: tuple[ServiceHealth, ...] = ()
    index = 0
    while not (entries and entries[0].checks):
        index, entries = await consul.watch_service(service.name, cluster, index, 10)
    (entry,) = entries
    assert (entry.id, entry.address, entry.port, entry.tags) == (service.id, "10.0.0.1", 5100, (f"cluster={cluster}",))
    assert not entry.passing
    assert (await consul.watch_service(service.name, "another", 0, 1))[1] == ()
    await consul.deregister(service.id)
    await consul.deregister(service.id)
    assert service.id not in await consul.local_services()
    while entries:
        index, entries = await consul.watch_service(service.name, cluster, index, 10)


async def test_a_ttl_check_is_what_it_is_told_and_critical_when_it_is_not(consul: Consul, cluster: str) -> None:
    service = agent_service(cluster, ttl=1)
    await consul.register(service)
    beat = service.checks[0].id
    index, _ = await consul.watch_service(service.name, cluster, 0, 1)
    await consul.check_update(beat, "passing", "Started since 12:00")
    index, (entry,) = await consul.watch_service(service.name, cluster, index, 10)
    assert entry.passing
    assert [each.output for each in entry.checks if each.id == beat] == ["Started since 12:00"]
    started = time.monotonic()
    index, (entry,) = await consul.watch_service(service.name, cluster, index, 10)
    assert not entry.passing
    assert 0.7 < time.monotonic() - started < 4
    await consul.check_update(beat, "warning", "late")
    await checks_become(consul, cluster, {"n1:beat": "warning"})
    await consul.deregister(service.id)


async def test_registering_again_keeps_the_status_and_brings_new_notes(consul: Consul, cluster: str) -> None:
    service = agent_service(cluster)
    await consul.register(service)
    await consul.check_update(service.checks[0].id, "passing", "fine")
    await consul.register(agent_service(cluster, notes="a sentence", port=5101))
    index, notes, status = 0, "", ""
    while notes != "a sentence":
        index, (check,) = await consul.watch_checks(cluster, index, 10)
        notes, status = check.notes, check.status
    assert status == "passing"
    assert (await consul.local_services())[service.id].port == 5101
    await consul.deregister(service.id)


async def test_a_check_that_is_no_longer_wanted_goes_away(consul: Consul, cluster: str) -> None:
    service = agent_service(cluster)
    await consul.register(service)
    await consul.register(Service(service.id, service.name, meta=service.meta, checks=()))
    await checks_become(consul, cluster, {})
    with pytest.raises(CheckGone):
        await consul.check_update(service.checks[0].id, "passing", "")
    await consul.deregister(service.id)


async def test_an_alias_check_follows_its_service(consul: Consul, cluster: str) -> None:
    agent, replica = agent_service(cluster), replica_service(cluster)
    await consul.register(agent)
    await consul.register(replica)
    beat = agent.checks[0].id
    for status in ("passing", "critical", "passing"):
        await consul.check_update(beat, status, "said so")
        wanted = {"n1:beat": status, "web.0:agent": status, "web.0:state": "passing"}
        await checks_become(consul, cluster, wanted)
    # Deregistering the followed service is left out: a real Consul may notice only a minute later.
    await consul.deregister(replica.id)
    await consul.deregister(agent.id)


async def test_a_session_bound_to_a_check_ends_with_it(consul: Consul, cluster: str, root: str) -> None:
    service = agent_service(cluster)
    await consul.register(service)
    beat = service.checks[0].id
    with pytest.raises(Refused):
        await consul.session_create("too early", ttl=None, lock_delay=0, service_checks=[beat])
    await consul.check_update(beat, "passing", "")
    await checks_become(consul, cluster, {"n1:beat": "passing"})
    session = await consul.session_create("bound", ttl=60, lock_delay=0, service_checks=[beat])
    assert await consul.acquire(root + "lock", b"", session)
    started = time.monotonic()
    await consul.check_update(beat, "critical", "gone")
    await until(lambda: consul.session_info(session), lambda info: info is None)
    assert time.monotonic() - started < 2
    held = await consul.get(root + "lock")
    assert held is not None
    assert held.session is None
    await consul.deregister(service.id)


async def test_a_check_nobody_knows(consul: Consul) -> None:
    with pytest.raises(CheckGone):
        await consul.check_update("nobody:knows", "passing", "")
    with pytest.raises(CheckGone):
        await consul.session_create("unknown", ttl=None, lock_delay=0, service_checks=["nobody:knows"])


async def test_it_says_who_it_is(consul: Consul) -> None:
    assert await consul.leader()
    assert "node" in await consul.describe()


async def test_nobody_there() -> None:
    client = ConsulClient(Address("127.0.0.1", 1), rpc_timeout=2)
    for ask in (
        client.get("k"),
        client.get_all("k"),
        client.leader(),
        client.watch("k", 5, 1),
        client.local_services(),
    ):
        with pytest.raises(Waiting):
            await ask
    await client.close()
