"""Where a replica goes: filter nodes in order, then score what is left. Why there is no place is data."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from agent.wire import ReplicaPolicy, ReplicaSpec
from reconciler.model.desired import InstanceSpec
from reconciler.model.observed import NodeView
from reconciler.model.where import matches
from reconciler.planning.capacity import Room, Rooms, lacks
from reconciler.planning.explain import counted
from reconciler.planning.fleet import Fleet, Sighting, Site
from reconciler.planning.outlook import Outlook

Key = tuple[float | int | str, ...]


def label_fault(site: Site, where: str) -> str:
    """Why a node can never hold this instance, whatever else happens there; empty if it can."""
    if not site.listed:
        return "not in Git"
    if where and not matches(where, site.labels, site.name):
        return f"fail where {where}"
    return ""


def leave_fault(site: Site, where: str) -> str:
    """Why nothing of this instance may stay on a node; empty if it may."""
    return label_fault(site, where) or ("is drained" if site.draining else "")


def open_fault(site: Site, where: str, views: Mapping[str, NodeView]) -> str:
    """Why a node may not be given a new replica of this instance; empty if it may."""
    if not site.alive:
        return "not alive"
    fault = label_fault(site, where)
    if fault:
        return fault
    if site.cordoned:
        return "cordoned"
    return "locked" if views[site.name].locked_by else ""


@dataclass(slots=True)
class Ranking:
    """Open nodes, best first, by what does not depend on the instance; kept so while a plan fills them."""

    order: list[tuple[Key, str]]
    keys: dict[str, Key]
    seen: int = 0  # how many changes of rooms are in it


@dataclass(slots=True)
class Openings:
    """Which nodes take new replicas, per `where`; worked out once per plan."""

    fleet: Fleet
    _by_where: dict[str, tuple[tuple[Site, ...], Counter[str]]] = field(default_factory=dict)
    _rankings: dict[tuple[str, str], Ranking] = field(default_factory=dict)

    def ranked(self, where: str, strategy: str, rooms: Rooms) -> list[tuple[Key, str]]:
        """The open nodes with their scores, best first; for strategies that look at rooms only."""
        read, sites, score = rooms.outlook(self.fleet), self.fleet.sites, _BY_ROOM[strategy]
        found = self._rankings.get((where, strategy))
        if found is None:
            keys = {site.name: score(read(site.name), site) for site in self.of(where)[0]}
            found = Ranking(sorted((key, node) for node, key in keys.items()), keys, len(rooms.changed))
            self._rankings[where, strategy] = found
        for node in dict.fromkeys(rooms.changed[found.seen :]):
            if node in found.keys:
                del found.order[bisect_left(found.order, (found.keys[node], node))]
                found.keys[node] = score(read(node), sites[node])
                insort(found.order, (found.keys[node], node))
        found.seen = len(rooms.changed)
        return found.order

    def of(self, where: str) -> tuple[tuple[Site, ...], Counter[str]]:
        """The open nodes in name order, and how many nodes each filter removed."""
        found = self._by_where.get(where)
        if found is None:
            found = self._by_where[where] = self._filter(where)
        return found

    def _filter(self, where: str) -> tuple[tuple[Site, ...], Counter[str]]:
        sites: list[Site] = []
        removed: Counter[str] = Counter()
        for site in self.fleet.sites.values():
            fault = open_fault(site, where, self.fleet.views)
            if not fault:
                sites.append(site)
            elif site.listed or site.alive:
                removed[fault] += 1
        return tuple(sites), removed


@dataclass(slots=True)
class Seats:
    """The places one instance can still take, best first; each replica that takes one makes the others rarer.

    `own` is what counts against maxPerNode: everything that stays, and what this plan adds. `seen` is what scores look at.
    """

    instance: InstanceSpec
    openings: Openings
    outlook: Outlook
    own: Counter[str]
    seen: Counter[str]
    _passed: list[str] | None = field(default_factory=list)  # nodes of those that had their turn before
    _heap: list[tuple[Key, str]] | None = None
    _spread: Counter[str] = field(default_factory=Counter)
    _filled: set[str] = field(default_factory=set)  # nodes that cannot take any more of it

    def take(self, avoid: str = "", among: Collection[str] = ()) -> str:
        """The best node for one more replica, counted as taken; empty when no node passes the filters.

        With `among` it must be one of these.
        """
        self._begin()
        chosen = self._untouched(avoid, among) or self._best(avoid, among)
        if chosen:
            self._took(chosen)
        return chosen

    def _took(self, node: str) -> None:
        self.own[node] += 1
        self._see(node)
        self.outlook.rooms.add(self.openings.fleet, node, self.instance.spec, self.instance.policy)

    def take_at(self, node: str) -> bool:
        """Whether this very node has room for one more replica, which then is counted as taken."""
        self._begin()
        sites, _ = self.openings.of(self.instance.placement.where)
        if all(site.name != node for site in sites) or self._full(node):
            return False
        self._took(node)
        return True

    def pass_by(self, home: Sighting) -> None:
        """A replica that this situation brought to its node has its turn."""
        if not self.outlook.fresh(home):
            return
        if self._passed is not None:
            self._passed.append(home.node)
        else:
            self._count(home.node)

    def _begin(self) -> None:
        """The first replica is being placed: now it matters what was before it."""
        if self._passed is None:
            return
        self.outlook.turn_of(self.instance.name)
        passed, self._passed = self._passed, None
        for node in passed:
            self._count(node)

    def _count(self, node: str) -> None:
        self._see(node)
        self.outlook.rooms.count(self.openings.fleet, node, self.instance.spec, self.instance.policy)

    def _see(self, node: str) -> None:
        self.seen[node] += 1
        self._spread[self._group(node)] += 1

    def _untouched(self, avoid: str, among: Collection[str]) -> str:
        """The best node without any replica of the instance, where nothing but rooms tells such nodes apart.

        That is so for most instances, and spares them to score every node. Empty when `_best` has to look.
        """
        placement = self.instance.placement
        if placement.prefer or placement.spread not in ("", "node") or placement.strategy not in _BY_ROOM:
            return ""
        seen, filled = self.seen, self._filled
        for _, node in self.openings.ranked(placement.where, placement.strategy, self.outlook.rooms):
            if node in filled or node == avoid or seen.get(node) or (among and node not in among):
                continue
            if not self._full(node):
                return node
            filled.add(node)
        return ""

    def _best(self, avoid: str, among: Collection[str]) -> str:
        heap = self._ready()
        aside: list[tuple[Key, str]] = []
        chosen = ""
        while heap:
            key, node = heap[0]
            if node == avoid or (among and node not in among):
                aside.append(heapq.heappop(heap))
                continue
            if self._full(node):
                heapq.heappop(heap)
                continue
            now = self._key(node)
            if now != key:  # something else took a place since: what changed sinks, and the next is looked at
                heapq.heapreplace(heap, (now, node))
                continue
            chosen = node
            break
        for seat in aside:
            heapq.heappush(heap, seat)
        return chosen

    def why_none(self, avoid: str = "", among: Collection[str] = ()) -> str:
        """`3 nodes: 1 not alive, 2 fail where zone == 'a'`."""
        sites, removed = self.openings.of(self.instance.placement.where)
        tally: Counter[str] = Counter(removed)
        for site in sites:
            if site.name == avoid:
                tally["must leave it"] += 1
            elif among and site.name not in among:
                tally["may not have its lease"] += 1
            else:
                tally[self._full(site.name) or "free"] += 1
        nodes = counted(sum(tally.values()), "node")
        return (
            f"{nodes}: " + ", ".join(f"{count} {fault}" for fault, count in _in_filter_order(tally)) if tally else nodes
        )

    def _ready(self) -> list[tuple[Key, str]]:
        if self._heap is None:
            self._spread = Counter()
            for node, count in self.seen.items():
                self._spread[self._group(node)] += count
            sites, _ = self.openings.of(self.instance.placement.where)
            self._heap = [(self._key(site.name), site.name) for site in sites]
            heapq.heapify(self._heap)
        return self._heap

    def _group(self, node: str) -> str:
        return group(self.openings.fleet, self.instance, node)

    def _full(self, node: str) -> str:
        instance = self.instance
        most = instance.placement.max_per_node
        if most is not None and self.own[node] >= most:
            return f"hold {most} of it already"
        room = self.outlook.rooms.reader(self.openings.fleet)(node)
        lacking = lacks(room, self.openings.fleet.sites[node].capacity, instance.spec.resources)
        if lacking:
            return f"without {lacking} left"
        return port_taken(room, instance.policy)

    def _key(self, node: str) -> Key:
        """Smaller is better: preferences, spread, own replicas, strategy, name."""
        fleet, instance = self.openings.fleet, self.instance
        site = fleet.sites[node]
        room = self.outlook.rooms.outlook(fleet)(node)
        placement = instance.placement
        preferred = sum(matches(text, site.labels, node) for text in placement.prefer)
        strategy = STRATEGIES[placement.strategy](room, site, instance.spec)
        return (-preferred, self._spread[self._group(node)], self.seen[node], *strategy, node)


def group(fleet: Fleet, instance: InstanceSpec, node: str) -> str:
    """The value of the label over which an instance is spread; the node itself when it is spread over nodes."""
    label = instance.placement.spread
    return node if label in ("", "node") else fleet.sites[node].labels.get(label, "")


def port_taken(room: Room, policy: ReplicaPolicy) -> str:
    """Which of the fixed ports something on the node has already; empty if none."""
    taken = [port for port in policy.ports if room.ports[port]]
    return f"use port {taken[0]} already" if taken else ""


def _least_loaded(room: Room, site: Site) -> Key:
    return (room.share(site.capacity), room.slots)


def _pack(room: Room, site: Site) -> Key:
    return (-room.share(site.capacity), -room.slots)


def _evenness(room: Room, site: Site, spec: ReplicaSpec) -> Key:
    return (-room.evenness_with(spec.package.name), *_least_loaded(room, site))


_BY_ROOM: Mapping[str, Callable[[Room, Site], Key]] = {"least-loaded": _least_loaded, "pack": _pack}
STRATEGIES: Mapping[str, Callable[[Room, Site, ReplicaSpec], Key]] = {
    "least-loaded": lambda room, site, _spec: _least_loaded(room, site),
    "pack": lambda room, site, _spec: _pack(room, site),
    "evenness": _evenness,
}

_FILTERS = (
    "not alive",
    "not in Git",
    "fail where",
    "cordoned",
    "locked",
    "must leave",
    "may not",
    "hold",
    "without",
    "use port",
)


def _in_filter_order(tally: Mapping[str, int]) -> Iterable[tuple[str, int]]:
    def order(item: tuple[str, int]) -> tuple[int, str]:
        fault = item[0]
        return (next((i for i, start in enumerate(_FILTERS) if fault.startswith(start)), len(_FILTERS)), fault)

    return sorted(tally.items(), key=order)
