"""Scripts of key and session operations, made up by hypothesis: the store says and holds what a real Consul does."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.consul.address import Address
from agent.consul.client import ConsulClient
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.consul.protocol import Consul, TxnOp
from agent.errors import TdieError

KEYS = ("a", "b", "b/c", "d/e")
VALUES = (b"", b"1", b"22")
NEVER = 10**9  # an index no key has
SESSIONS = 3  # numbers of sessions; 0 is one that never existed


@dataclass(frozen=True)
class Step:
    verb: str
    key: str = "a"
    value: bytes = b""
    which: int = 0  # a session, or how old an index is
    inner: tuple[Step, ...] = ()


keys = st.sampled_from(KEYS)
values = st.sampled_from(VALUES)
numbers = st.integers(0, SESSIONS - 1)
simple = st.builds(
    Step, st.sampled_from(["put", "cas", "cas0", "acquire", "release", "create", "destroy"]), keys, values, numbers
)
removing = st.builds(Step, st.sampled_from(["delete", "delete_cas", "delete_tree"]), keys, values, numbers)
TXN_READS = ["get", "get-tree", "check-index", "check-session", "check-not-exists"]
TXN_WRITES = ["set", "cas", "lock", "unlock", "delete", "delete-cas", "delete-tree"]
in_txn = st.builds(Step, st.sampled_from([*TXN_READS, *TXN_WRITES]), keys, values, numbers)
txns = st.builds(Step, st.just("txn"), inner=st.lists(in_txn, min_size=1, max_size=4).map(tuple))
scripts = st.lists(st.one_of(simple, simple, removing, txns), min_size=1, max_size=14)


class Player:
    """Plays a script below a prefix and writes down everything that can be seen, with indexes as order only."""

    def __init__(self, consul: Consul, root: str) -> None:
        self.consul = consul
        self.root = root
        self.sessions: list[str] = [str(uuid.uuid4())]
        self.seen: dict[str, int] = {}

    async def play(self, script: list[Step]) -> list[object]:
        for _ in range(SESSIONS - 1):
            self.sessions.append(await self.consul.session_create("script", ttl=None, lock_delay=0))
        story: list[object] = []
        for step in script:
            try:
                story.append(await self.do(step))
            except TdieError as error:
                story.append(type(error).__name__)
            story.append(await self.state())
        for session in self.sessions[1:]:
            await self.consul.session_destroy(session)
        story.append(await self.state())
        return story

    async def do(self, step: Step) -> object:
        key, consul, session = self.root + step.key, self.consul, self.sessions[step.which]
        index = self.seen.get(key, NEVER) - (1 if step.which == 0 else 0)
        match step.verb:
            case "put":
                return await consul.put(key, step.value)
            case "cas":
                return await consul.put(key, step.value, cas=max(1, index))
            case "cas0":
                return await consul.put(key, step.value, cas=0)
            case "delete":
                return await consul.delete(key)
            case "delete_cas":
                return await consul.delete(key, cas=max(1, index))
            case "delete_tree":
                return await consul.delete(key, recurse=True)
            case "acquire":
                return await consul.acquire(key, step.value, session)
            case "release":
                return await consul.release(key, step.value, session)
            case "create":
                self.sessions[step.which] = await consul.session_create("script", ttl=None, lock_delay=0)
                return True
            case "destroy":
                await consul.session_destroy(session)
                return True
        ops = [self.op(each) for each in step.inner]
        return [(each.key.removeprefix(self.root), each.value, each.flags) for each in await consul.txn(ops)]

    def op(self, step: Step) -> TxnOp:
        key = self.root + step.key
        index = max(1, self.seen.get(key, NEVER) - (1 if step.which == 0 else 0))
        value = step.value if step.verb in ("set", "cas", "lock", "unlock") else None
        session = self.sessions[step.which] if step.verb in ("lock", "unlock", "check-session") else None
        return TxnOp(
            step.verb, key, value, index if step.verb in ("cas", "check-index", "delete-cas") else None, session
        )

    async def state(self) -> list[object]:
        """All keys, and which of them were changed by the last step."""
        found = await self.consul.get_all(self.root)
        story: list[object] = []
        for each in found:
            changed = each.modify_index != self.seen.get(each.key)
            holder = self.sessions.index(each.session) if each.session in self.sessions else each.session and "other"
            fresh = each.create_index == each.modify_index
            story.append((each.key.removeprefix(self.root), each.value, each.lock_index, holder, changed, fresh))
        self.seen = {each.key: each.modify_index for each in found}
        return story


async def told_by(consul: Consul, script: list[Step]) -> list[object]:
    return await Player(consul, f"script/{uuid.uuid4()}/").play(script)


async def both(address: str, script: list[Step]) -> tuple[list[object], list[object]]:
    client = ConsulClient(Address.parse(address))
    try:
        return await told_by(MemoryConsul(Store(lambda: 0.0)), script), await told_by(client, script)
    finally:
        await client.close()


LIMITED = settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.consul
@LIMITED
@given(script=scripts)
def test_the_store_behaves_like_a_real_consul(real_consul: Any, script: list[Step]) -> None:
    ours, theirs = asyncio.run(both(real_consul.http, script))
    assert ours == theirs


@settings(LIMITED, max_examples=15)
@given(script=scripts)
def test_the_embedded_server_behaves_like_its_store(consul_server: Any, script: list[Step]) -> None:
    ours, theirs = asyncio.run(both(consul_server.http, script))
    assert ours == theirs
