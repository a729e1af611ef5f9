"""Where replicas would go better now that another node has room: shown, and carried out one at a time where asked for.

Nothing is measured and nothing remembered. A replica may go from one open node to another if afterwards the other one is still not
fuller, its instance is spread no worse, and this situation (commit and open nodes) has not chosen its node already. So every move
makes the fleet more even, each replica moves at most once until a node or a commit comes, and all of it ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from agent.wire import Resources
from reconciler.model.desired import InstanceSpec
from reconciler.model.plan import Cause, HoldReason, Verdict
from reconciler.model.where import matches
from reconciler.planning.capacity import Room, lacks
from reconciler.planning.cases import Case, Step, World
from reconciler.planning.examine import examine, stay_of
from reconciler.planning.explain import counted, listed
from reconciler.planning.fleet import Sighting, Site
from reconciler.planning.keeping import move
from reconciler.planning.outlook import Stay
from reconciler.planning.place import group, label_fault, port_taken

LOOKED_AT = 32  # the fullest nodes, and for each of their instances the emptiest, bound the cost of a hopeless search
SHOWN = 100  # moves worked out by one plan; carried out is one at a time anyway

# What a person, a policy or a lack of room keeps back for as long as it likes: a move does not wait for that.
_STANDING = frozenset(
    {
        HoldReason.NODE_SILENT, HoldReason.NODE_FORGOTTEN, HoldReason.NODE_LOCKED, HoldReason.NO_PLACE, HoldReason.PACKAGE_FAILED,
        HoldReason.PACKAGE_MISSING, HoldReason.ROLLOUT_HALTED, HoldReason.PRUNE_HELD, HoldReason.PRUNE_OFF,
        HoldReason.SUSPENDED, HoldReason.NOT_APPROVED, HoldReason.DRY_RUN, HoldReason.WINDOW_CLOSED,
        HoldReason.SELF_HEAL_OFF, HoldReason.WAITING_LEASE, HoldReason.CANARY_WAITS, HoldReason.MASS_FAILURE_HOLD,
    }
)  # fmt: skip


@dataclass(slots=True)
class Spread:
    """One instance as it will be once everything else is carried out."""

    stay: Stay
    places: dict[str, str]  # replica -> node
    own: Counter[str]  # by node
    groups: Counter[str]  # by the value of the label it is spread over


@dataclass(slots=True)
class Balance:
    """The open nodes and what will be on them, while replicas are moved in thought."""

    world: World
    cases: Mapping[str, Case]
    sites: dict[str, Site]
    known: dict[str, Spread] = field(default_factory=dict)

    def room(self, node: str) -> Room:
        return self.world.rooms.outlook(self.world.fleet)(node)

    def share(self, node: str, more: int = 0, of: Resources | None = None) -> float:
        """How full a node will be, also with one replica more or less."""
        return self.room(node).share(self.sites[node].capacity, more, of)

    def spread(self, spec: InstanceSpec) -> Spread:
        found = self.known.get(spec.name)
        if found is None:
            stay = self.world.outlook.stays.get(spec.name) or stay_of(self.world, spec)
            places = {name: home.node for name, home in stay.homes.items() if home is not None and name in stay.staying}
            case = self.cases.get(spec.name)
            for step in case.steps if case is not None else ():
                if step.change.verdict in (Verdict.START, Verdict.MOVE) and step.change.replica in stay.wanted:
                    places[step.change.replica] = step.change.node
            own = Counter(node for node in places.values() if node)
            groups: Counter[str] = Counter()
            for node, count in own.items():
                groups[group(self.world.fleet, spec, node)] += count
            found = self.known[spec.name] = Spread(stay, places, own, groups)
        return found

    def leaving(self, node: str) -> Iterator[tuple[Spread, str, Sighting]]:
        """Replicas on a node that may go elsewhere, with where the others of their instance are; in name order."""
        for sighting in sorted(self.world.fleet.on(node), key=lambda seen: seen.replica):
            spec = self.world.desired.instances.get(sighting.instance)
            if spec is None or spec.per_node is not None or spec.suspend or spec.placement.strategy == "pack":
                continue
            if sighting.entry is None or self.world.outlook.fresh(sighting):
                continue
            spread = self.spread(spec)
            home = spread.stay.homes.get(sighting.replica)
            if home is not None and home.node == spread.places.get(sighting.replica) == node:
                yield spread, sighting.replica, home

    def suits(self, spread: Spread, source: str, target: str) -> bool:
        """Whether one replica goes better to the target: nothing it asks for gets worse, and the source stays as full or fuller."""
        spec, fleet = spread.stay.spec, self.world.fleet
        placement, site = spec.placement, self.sites[target]
        if label_fault(site, placement.where) or spread.own[target] + 1 > spread.own[source]:
            return False
        most = placement.max_per_node
        if most is not None and spread.own[target] >= most:
            return False
        here, there = group(fleet, spec, source), group(fleet, spec, target)
        if here != there and spread.groups[there] + 1 > spread.groups[here]:
            return False
        if _liked(spec, site) < _liked(spec, self.sites[source]):
            return False
        room, more = self.room(target), spec.spec.resources
        if lacks(room, site.capacity, more) or port_taken(room, spec.policy):
            return False
        after = self.share(source, -1, more)
        return self.share(target, 1, more) <= after < self.share(source)

    def shift(self, spread: Spread, replica: str, source: str, target: str) -> None:
        """One replica is somewhere else from now on."""
        spec, fleet, rooms = spread.stay.spec, self.world.fleet, self.world.rooms
        rooms.discount(fleet, source, spec.spec)
        rooms.count(fleet, target, spec.spec, spec.policy)
        spread.places[replica] = target
        spread.own[source] -= 1
        spread.own[target] += 1
        spread.groups[group(fleet, spec, source)] -= 1
        spread.groups[group(fleet, spec, target)] += 1


def rebalance(world: World, cases: dict[str, Case]) -> tuple[str, ...]:
    """Add the moves that instances with `rebalance: gradual` ask for; say what the others leave where it is.

    The first move goes, the others wait for it. Something is said only of nodes that run nothing which could be elsewhere.
    """
    sites = {site.name: site for site in world.openings.of("")[0]}
    idle = {name for name in sites if not _busy(world, name)}
    if len(sites) < 2 or not (idle or any(_gradual(spec) for spec in world.desired.instances.values())):
        return ()
    world.outlook.complete()
    balance = Balance(world, cases, sites)
    found: list[Step] = []
    for spread, sighting, target in _moves(balance, gradual=True):
        found.append(_add(world, cases, spread.stay, sighting, target))
        if len(found) > 1:
            first = found[0].change.replica
            found[-1].held(HoldReason.REBALANCING, f"one replica at a time, {first} goes first", (first,))
    left = Counter(target for _, _, target in _moves(balance, gradual=False) if target in idle) if idle else Counter()
    return tuple(
        f"{node} has room: {counted(count, 'replica')} would move there with rebalance: gradual"
        for node, count in sorted(left.items())
    )


def gate(cases: Iterable[Case]) -> None:
    """A move that only makes the fleet more even waits until nothing else is under way."""
    steps = [step for case in cases for step in case.steps]
    moves = [step for step in steps if step.rebalances and step.hold is None]
    if not moves:
        return
    going = [step for step in steps if not step.rebalances and (step.hold is None or step.hold.reason not in _STANDING)]
    names = tuple(sorted({step.change.replica for step in going}))
    for step in moves if names else ():
        step.held(HoldReason.REBALANCING, f"{listed(names)} {'comes' if len(names) == 1 else 'come'} first", names[:10])


def _moves(balance: Balance, *, gradual: bool) -> Iterator[tuple[Spread, Sighting, str]]:
    """Moves that make the fleet more even, each made in thought before the next is looked for."""
    for _ in range(SHOWN):
        found = _best(balance, gradual)
        if found is None:
            return
        spread, replica, sighting, target = found
        balance.shift(spread, replica, sighting.node, target)
        yield spread, sighting, target


def _best(balance: Balance, gradual: bool) -> tuple[Spread, str, Sighting, str] | None:
    """From the fullest node that can give one, to the emptiest that can take it; of its replicas the one least alone there."""
    shares = {node: balance.share(node) for node in balance.sites}
    receivers = sorted(shares, key=lambda node: (shares[node], node))
    least = min(balance.share(node, 1) for node in receivers)
    givers = [node for node in sorted(shares, key=lambda node: (-shares[node], node)) if shares[node] > least]
    for giver in givers[:LOOKED_AT]:
        leaving = [found for found in balance.leaving(giver) if _gradual(found[0].stay.spec) is gradual]
        leaving.sort(key=lambda found: -found[0].own[giver])  # stable: by name among equals
        for spread, replica, sighting in leaving:
            where = spread.stay.spec.placement.where
            fitting = (node for node in receivers if node != giver and not label_fault(balance.sites[node], where))
            for _, target in zip(range(LOOKED_AT), fitting, strict=False):
                if balance.suits(spread, giver, target):
                    return spread, replica, sighting, target
    return None


def _add(world: World, cases: dict[str, Case], stay: Stay, home: Sighting, target: str) -> Step:
    """The move as a step of its instance's case, after whatever else happens to the replica."""
    name = stay.spec.name
    if name not in cases:
        cases[name] = examine(world, stay)
    case = cases[name]
    before = [step for step in case.steps if step.change.replica == home.replica]
    step = move(world, stay.spec, home.replica, home, target, Cause.NODE_JOINED, f"{target} has more room")
    step.rebalances = True
    case.steps.append(step)
    return step.held(HoldReason.REBALANCING, f"{home.replica} changes first", (home.replica,)) if before else step


def _busy(world: World, node: str) -> bool:
    """Whether anything runs on a node that could as well run elsewhere."""
    instances = (world.desired.instances.get(sighting.instance) for sighting in world.fleet.on(node))
    return any(spec is None or spec.per_node is None for spec in instances)


def _gradual(spec: InstanceSpec) -> bool:
    return spec.placement.rebalance == "gradual"


def _liked(spec: InstanceSpec, site: Site) -> int:
    return sum(matches(text, site.labels, site.name) for text in spec.placement.prefer)
