"""A backup brings back what controllers remember, and can do no harm: wrong cluster, lower epoch, older commit, another leader."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent import keys
from agent.clock import SystemClock
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.errors import Invalid, Refused
from reconciler.execution.backup import check, collect, restore
from reconciler.execution.proven import NotLeading

BACK = {
    "to": "c1",
    "from": "c2",
    "reached": "c2",
    "quarantined": ["c2"],
    "who": "",
    "why": "",
    "at": "",
    "automatic": False,
}


class Place:
    """One Consul with a cluster in it."""

    def __init__(self, **record: Any) -> None:
        self.clock = SystemClock()
        self.consul = MemoryConsul(Store(now=self.clock.now))
        self.record = record

    async def filled(self, *, epoch: int = 7) -> Place:
        await self.consul.put(keys.epoch("c"), str(epoch).encode())
        await self.consul.put(keys.prefix("other") + "record/commit", b"{}")
        for name, value in self.record.items():
            await self.consul.put(keys.record("c", *name.split("__")), json.dumps(value).encode())
        return self

    async def backup(self) -> dict[str, Any]:
        return await collect(self.consul, "c", self.clock)

    async def leads(self) -> str:
        session = await self.consul.session_create("controller", ttl=30.0, lock_delay=0.0)
        assert await self.consul.acquire(keys.leader("c"), b"{}", session)
        return session

    async def value(self, name: str) -> Any:
        entry = await self.consul.get(keys.prefix("c") + name)
        return None if entry is None else json.loads(entry.value)


FULL = {"commit": {"commit": "c2"}, "approvals": {"changes": ["1"]}, "history__00000001": {"number": 1, "commit": "ü"}}


async def test_a_wiped_consul_gets_all_of_it_back() -> None:
    before = await Place(**FULL, nodes__a={"who": "ann"}).filled()
    await before.leads()
    doc = json.loads(json.dumps(await before.backup()))
    assert set(doc["keys"]) == {"record/commit", "record/approvals", "record/history/00000001", "record/nodes/a"}
    after = Place()
    done = await restore(after.consul, "c", check(doc, "c"), None)
    assert (done.written, done.deleted, done.commit_kept, done.epoch) == (4, 0, False, 7)
    assert (await after.backup())["keys"] == doc["keys"]
    assert await after.value("epoch") == 7
    assert await after.consul.get(keys.fresh("c")) is not None  # whoever leads then waits for nodes it does not know


async def test_the_epoch_is_never_lowered() -> None:
    doc = await (await Place(**FULL).filled(epoch=7)).backup()
    later = await Place().filled(epoch=40)
    assert (await restore(later.consul, "c", doc, None)).epoch == 40
    assert await later.value("epoch") == 40
    assert await later.consul.get(keys.fresh("c")) is None


@pytest.mark.parametrize(
    ("saved", "now", "after"),
    [
        ({"commit": "c1"}, {"commit": "c9"}, {"commit": "c9"}),  # never back to an older commit
        ({"commit": "c1"}, None, {"commit": "c1"}),
        (
            {"commit": "c1", "rollback": BACK},
            {"commit": "c2"},
            {"commit": "c1", "rollback": BACK},
        ),  # unless it was rolled back
        (None, {"commit": "c9"}, {"commit": "c9"}),
    ],
)
async def test_which_commit_is_in_force_then(saved: Any, now: Any, after: Any) -> None:
    doc = await (await Place(**({"commit": saved} if saved else {})).filled()).backup()
    place = await Place(**({"commit": now} if now else {}), approvals={"changes": ["old"]}).filled()
    done = await restore(place.consul, "c", doc, await place.leads())
    assert await place.value("record/commit") == after
    assert await place.value("record/approvals") is None  # it is not in the backup
    assert done.commit_kept == (now is not None and after == now)


async def test_while_somebody_leads_only_the_leader_restores() -> None:
    doc = await (await Place(**FULL).filled()).backup()
    place = await Place().filled()
    session = await place.leads()
    with pytest.raises(Refused, match="LEADER_THERE"):
        await restore(place.consul, "c", doc, None)
    await place.consul.session_destroy(session)
    with pytest.raises(NotLeading):
        await restore(place.consul, "c", doc, session)
    assert (await place.backup())["keys"] == {}
    await restore(place.consul, "c", doc, None)
    assert (await place.backup())["keys"] == doc["keys"]


async def test_many_keys_are_several_transactions() -> None:
    many = {f"history__{n:08}": {"number": n} for n in range(150)}
    doc = await (await Place(**many).filled()).backup()
    place = Place()
    assert (await restore(place.consul, "c", doc, None)).written == 150
    assert (await place.backup())["keys"] == doc["keys"]


GOOD = {"format": "tdie/backup/1", "cluster": "c", "at": "", "epoch": 1, "keys": {}}


@pytest.mark.parametrize(
    ("doc", "code"),
    [
        ([], "BACKUP_FORMAT"),
        ({**GOOD, "format": "tdie/backup/2"}, "BACKUP_FORMAT"),
        ({**GOOD, "cluster": "d"}, "BACKUP_OTHER_CLUSTER"),
        ({**GOOD, "epoch": "1"}, "BACKUP_FORMAT"),
        ({**GOOD, "epoch": -1}, "BACKUP_FORMAT"),
        ({**GOOD, "epoch": True}, "BACKUP_FORMAT"),
        ({**GOOD, "keys": []}, "BACKUP_FORMAT"),
        ({**GOOD, "keys": {"leader": {}}}, "BACKUP_FORMAT"),
        ({**GOOD, "keys": {"record/../leader": {}}}, "BACKUP_FORMAT"),
        ({**GOOD, "keys": {"record//x": {}}}, "BACKUP_FORMAT"),
        ({**GOOD, "keys": {"record/x": "text"}}, "BACKUP_FORMAT"),
        ({**GOOD, "keys": {"record/x": {"a": "x" * 70_000}}}, "BACKUP_FORMAT"),
        ({**GOOD, "keys": {"record/commit": {}}}, "BACKUP_DAMAGED"),
        (GOOD, "BACKUP_DAMAGED"),  # without a digest
    ],
)
def test_what_is_no_backup_of_this_cluster_is_refused(doc: Any, code: str) -> None:
    with pytest.raises((Invalid, Refused)) as caught:
        check(doc, "c")
    assert caught.value.code == code
