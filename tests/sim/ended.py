"""How a run ended, as facts, and which of them may be otherwise after trouble."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from agent.consul.embedded.store import Store
from agent.keeper.protocol import HostRow
from reconciler.loop import Loop
from reconciler.simulation.machine import LIVE
from reconciler.simulation.world import CLUSTER, World
from tests.sim.points import Effect, Point

PREFIX = f"tdie/{CLUSTER}/"
HOSTS = LIVE | {"Failed", "Backoff"}
PASSING = frozenset({"keeps", "started", "has", "history"})  # facts about the way, not about where it leads
AWAY = frozenset({"agent", "keeper", "answer", "meanwhile"})  # trouble in which a node may not be there for a moment


@dataclass(frozen=True, slots=True, order=True)
class Fact:
    """Something that is so in the end."""

    kind: str
    text: str
    node: str = ""

    @property
    def subject(self) -> str:
        """The replica that it is about, if it is about one."""
        return self.text.partition(" ")[0]

    def __str__(self) -> str:
        return f"{self.kind} {self.text}" + (f" on {self.node}" if self.node else "")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended."""

    facts: Counter[Fact]
    leased: frozenset[str]
    broken: tuple[str, ...]  # promises, and lines that could not be done
    effects: tuple[Effect, ...]
    struck: bool
    timed: bool  # only the end counts


def rows(world: World) -> Iterator[tuple[str, HostRow]]:
    """Every host that there is or should be, with its node."""
    for name, machine in world.machines.items():
        found = machine.rows.values() if machine.up else ()
        yield from ((name, row) for row in found if row.state in HOSTS)


def facts(world: World, before: Collection[int], started: Mapping[tuple[str, str], int]) -> Iterator[Fact]:
    """Everything that is so now; `before` are the processes that there were, `started` counts starts by replica and spec."""
    for node, row in rows(world):
        well = "well" if row.healthy else "not well"
        what = f"{row.replica} {row.order.component.version} {row.spec_hash[:8]} {row.state} {well}"
        yield Fact("runs", what, node)
        if row.pid in before:
            yield Fact("keeps", row.replica, node)
    for (replica, spec_hash), times in started.items():
        yield from [Fact("started", f"{replica} {spec_hash[:8]}")] * times
    for node, machine in world.machines.items():
        yield from (Fact("has", str(each.package), node) for each in machine.packages.values() if machine.up)
    yield from _keys(world.store)
    yield from _catalog(world.store)
    yield from _shown(world.leader())


def _keys(store: Store) -> Iterator[Fact]:
    for key, entry in store.entries.items():
        name, held = key.removeprefix(PREFIX), store.sessions.get(entry.session or "")
        if name.startswith("record/history/"):
            yield Fact("history", f"{name} {_timeless(entry.value)}")
        elif name == "record/approvals":
            yield Fact("remembers", name)  # of what: of whatever the person was shown
        elif name.startswith(("record/", "bus/", "rewound", "fresh")):
            yield Fact("remembers", f"{name} {_timeless(entry.value)}")
        elif held is not None and name != "leader":
            yield Fact("lock", name, held.name.rpartition(" ")[2])


def _catalog(store: Store) -> Iterator[Fact]:
    for service in store.services.values():
        node, _, replica = service.id.removeprefix(PREFIX).partition("/")
        found = sorted({check.status for check in store.checks.values() if check.service == service.id})
        yield Fact("catalog", f"{service.name} {replica} {', '.join(found)}", node)


def _shown(leader: Loop | None) -> Iterator[Fact]:
    plan = leader.board.plan if leader is not None else None
    if plan is None:
        yield Fact("nobody", "leads")
        return
    yield from (Fact("held", f"{hold.replica} {hold.reason}") for hold in plan.holds)
    yield from (Fact("to do", f"{each.verdict} {each.replica}", each.node) for each in plan.changes)


def _timeless(value: bytes) -> str:
    return re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "…", value.decode())


def differences(reference: Ended, ended: Ended, point: Point) -> list[str]:
    """What is otherwise than without the trouble, and may not be."""
    leased = reference.leased | ended.leased
    wanted, found = (_that_count(each, point, leased) for each in (reference, ended))
    stays = {fact.subject for fact in reference.facts if fact.kind == "keeps"}
    moved = _homes(wanted) ^ _homes(found)
    if (
        point.trouble in AWAY
        and moved
        and stays.isdisjoint({replica for replica, _ in moved} - _ended_by(point, leased))
    ):
        wanted, found = _anywhere(wanted), _anywhere(found)
    missing = [f"not {fact}" for fact in wanted - found if fact.kind != "started"]  # less often is no harm
    fetched = "has" if point.trouble in AWAY else ""  # where something was to run while a node was in doubt
    more = [fact for fact in found - wanted if fact.kind != fetched]
    return sorted(missing + [str(fact) for fact in more])


def _ended_by(point: Point, leased: frozenset[str]) -> frozenset[str]:
    """What cannot live on through this trouble."""
    return leased if point.trouble == "keeper" else frozenset()


def _that_count(ended: Ended, point: Point, leased: Collection[str]) -> Counter[Fact]:
    """Without those about the way: that of what is leased when its keeper goes, and of all when only the end counts."""
    if ended.timed or point.trouble == "meanwhile":
        return Counter({fact: times for fact, times in ended.facts.items() if fact.kind not in PASSING})
    if point.trouble == "keeper":
        return Counter(
            {f: times for f, times in ended.facts.items() if f.kind not in PASSING or f.subject not in leased}
        )
    return ended.facts


def _homes(facts: Counter[Fact]) -> set[tuple[str, str]]:
    return {(fact.subject, fact.node) for fact in facts if fact.kind == "runs"}


def _anywhere(facts: Counter[Fact]) -> Counter[Fact]:
    """The same wherever it is so; packages may be where something was to run before."""
    found = Counter[Fact]()
    for fact, count in facts.items():
        if fact.kind != "has":
            found[replace(fact, node="")] += count
    return found
