"""When a failed rollout takes the commit back, to which one, and when it is left to people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from agent.clock import SystemClock
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.errors import Missing, Waiting
from agent.keys import leader
from agent.wire import PackageRef, ReplicaSpec
from reconciler.execution.approvals import promoted
from reconciler.execution.history import History
from reconciler.execution.record import RecordStore
from reconciler.execution.reverts import Reverts
from reconciler.execution.rollbacks import Rollbacks
from reconciler.model.desired import ClusterSpec, DesiredState, InstanceSpec
from reconciler.model.history import Entry
from reconciler.model.plan import Cause, Change, Hold, HoldReason, Plan, Verdict
from reconciler.simulation.source import SimSource
from reconciler.source.sourced import Sourced


def instance(name: str, version: int) -> InstanceSpec:
    spec = ReplicaSpec(package=PackageRef(name=name, version=f"{version}.0.0", digest=f"{version:064x}"))
    return InstanceSpec(name, spec, spec.hash(), replicas=1)


def state(commit: str, **versions: int) -> DesiredState:
    made = {name: instance(name, version) for name, version in sorted(versions.items())}
    return DesiredState(commit, ClusterSpec("c", {}), made, subject=commit)


COMMITS = (state("c1", web=1), state("c2", web=2, db=1), state("c3", web=2, db=2), state("c4", web=3, db=2))


class Desk:
    """A leader whose commits c1 to c4 ran one after the other; c4 is in force."""

    def __init__(self, *entries: Entry) -> None:
        clock = SystemClock()
        self.consul = MemoryConsul(Store(now=clock.now))
        self.source = SimSource()
        for commit in COMMITS:
            self.source.push(Sourced(commit, commit.commit))
        self.record = RecordStore("c", consul=self.consul, clock=clock)
        self.history = History("c", consul=self.consul, clock=clock)
        self.history.entries = entries or tuple(
            Entry(n, f"c{n}", healthy="" if n == 4 else "yes", ended="" if n == 4 else "superseded")
            for n in range(1, 5)
        )
        self.rollbacks = Rollbacks(self.record, self.history, self.source, clock)
        self.reverts = Reverts(self.rollbacks)
        self.session = ""

    async def look(self, failed: Mapping[str, str], stable: Mapping[str, InstanceSpec]) -> str:
        if not self.session:
            self.session = await self.consul.session_create("controller", ttl=30.0, lock_delay=0.0)
            await self.consul.acquire(leader("c"), b"{}", self.session)
        sourced = await self.source.look(rollback=self.record.rollback)
        plan = Plan("c4" if sourced.desired is None else sourced.desired.commit, (), (), {}, failed=failed)
        hashes = {name: spec.spec_hash for name, spec in stable.items()}
        return await self.reverts.look(plan, sourced, hashes, self.session)


@pytest.mark.parametrize(
    ("failed", "stable", "to"),
    [
        (("web",), {"web": instance("web", 2)}, "c3"),
        (("web",), {"web": instance("web", 1)}, "c1"),
        (("db",), {"db": instance("db", 1)}, "c2"),
        (("web", "db"), {"web": instance("web", 2), "db": instance("db", 1)}, "c2"),
        (("web", "db"), {"web": instance("web", 1), "db": instance("db", 1)}, "c1"),  # without db, as it was then
        (("web",), {}, "c3"),  # not remembered: as it was before, and it ran well
        (("web",), {"web": instance("web", 9)}, None),  # never seen in any commit that is remembered
    ],
    ids=str,
)
async def test_to_the_last_commit_in_which_it_ran_well(
    failed: tuple[str, ...], stable: dict[str, InstanceSpec], to: str | None
) -> None:
    desk = Desk()
    said = await desk.look(dict.fromkeys(failed, "1/1 unhealthy: boom"), stable)
    back = desk.record.rollback
    if to is None:
        assert (back, "no earlier commit is remembered" in said) == (None, True)
        assert await desk.look(dict.fromkeys(failed, "…"), stable) == ""  # said once
        return
    assert back is not None
    assert (back.to, back.left, back.automatic) == (to, "c4", True)
    assert back.who == f"update.autoRevert of {', '.join(sorted(failed))}"
    assert "1/1 unhealthy: boom" in back.why
    assert said == f"commit {to} instead of c4: the rollout of {', '.join(sorted(failed))} failed"


async def test_what_was_rolled_back_or_is_not_to_be_read_is_passed_by(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = [Entry(n, f"c{n}", healthy="yes", ended="superseded") for n in (1, 2, 3)]
    desk = Desk(ran[0], ran[1], replace(ran[2], ended="rolled-back"), Entry(4, "c4"))
    known = desk.source.load

    async def load(revision: str) -> Sourced:
        if revision == "c2":
            raise Missing("gone", code="GIT_REF_MISSING")
        return await known(revision)

    monkeypatch.setattr(desk.source, "load", load)
    await desk.look({"web": "boom"}, {})
    assert desk.record.rollback is not None
    assert desk.record.rollback.to == "c1"


async def test_git_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    known = desk.source.load

    async def away(revision: str) -> Sourced:
        raise Waiting("away", code="GIT_UNREACHABLE")

    monkeypatch.setattr(desk.source, "load", away)
    with pytest.raises(Waiting):
        await desk.look({"web": "boom"}, {})
    monkeypatch.setattr(desk.source, "load", known)
    assert await desk.look({"web": "boom"}, {}) != ""


async def test_a_rollback_that_does_not_run_well_is_left_to_people() -> None:
    desk = Desk()
    await desk.look({"web": "boom"}, {})
    before = desk.record.rollback
    assert before is not None
    assert await desk.look({"web": "boom"}, {}) == ""
    assert desk.record.rollback is before


def test_only_what_waited_for_it_goes_past_its_canaries() -> None:
    def change(id_: str, name: str) -> Change:
        return Change(id_, f"{name}.0", name, Verdict.REPLACE, Cause.COMMIT, "c", "a", to_hash=f"hash of {name}")

    changes = (change("1", "web"), change("2", "web"), change("3", "db"), change("4", "log"))
    reasons = (HoldReason.CANARY_WAITS, HoldReason.CANARY, HoldReason.CANARY_WAITS, HoldReason.SOAKING)
    holds = tuple(Hold(c.id, c.replica, c.instance, why, "") for c, why in zip(changes, reasons, strict=True))
    plan = Plan("c", changes, holds, {})
    assert promoted(plan, {"1", "2", "3", "4"}) == {"web": "hash of web", "db": "hash of db"}
    assert promoted(plan, {"2", "4"}) == {}
