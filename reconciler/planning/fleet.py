"""Who runs what where, indexed once and kept up to date node by node, so that cost follows the change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from agent.clock import Monotonic
from agent.wire import Capacity, ReplicaOrder, ReplicaState
from reconciler.model.desired import ClusterSpec
from reconciler.model.observed import NodeView, ObservedState, Presence, ReplicaView


@dataclass(frozen=True, slots=True)
class Site:
    """What placement may know of a node: presence, and Git's labels and capacity over the registered ones."""

    name: str
    presence: Presence
    listed: bool
    cordoned: bool
    draining: bool
    deadline: Monotonic | None  # of draining
    labels: Mapping[str, str]
    capacity: Capacity

    @property
    def alive(self) -> bool:
        return self.presence is Presence.ALIVE

    def overdue(self, now: Monotonic) -> bool:
        """Draining took as long as it may: what is left is stopped in any case."""
        return self.draining and self.deadline is not None and now >= self.deadline

    @property
    def silent(self) -> bool:
        """Nothing is concluded about it: what runs there is left alone, and may still run."""
        return self.presence in (Presence.UNREACHABLE, Presence.JOINING)


@dataclass(frozen=True, slots=True)
class Sighting:
    """One replica at one node: what the node was told (`entry`) and what it says (`row`)."""

    node: str
    replica: str
    instance: str
    entry: ReplicaOrder | None
    row: ReplicaView | None
    old_name: str = ""  # under which it still runs, although the node was told to rename it

    @property
    def placed(self) -> str:
        """The situation in which its node was chosen for it."""
        return "" if self.entry is None else self.entry.placed

    @property
    def healthy(self) -> bool:
        """Runs what it was told to run, and well."""
        entry, row = self.entry, self.row
        return entry is not None and row is not None and row.healthy and _shows(entry, row)

    @property
    def promising(self) -> bool:
        """Healthy, or starting: it may work before anything that is started in its place does."""
        starts = self.row is not None and self.row.state is ReplicaState.STARTING
        return self.healthy or (starts and self.reported)

    @property
    def reported(self) -> bool:
        """Whether the node's report shows what it was told."""
        return self.entry is not None and self.row is not None and _shows(self.entry, self.row)


def _shows(entry: ReplicaOrder, row: ReplicaView) -> bool:
    return row.spec_hash == entry.spec_hash and row.replica == entry.replica


def forgetful(view: NodeView) -> bool:
    """Whether a node shows replicas and does not remember who ordered them: its agent lost what it had written down."""
    return view.assignment is None and bool(view.replicas)


Sightings = Mapping[str, tuple[Sighting, ...]]  # by replica; by node name within
Seen = dict[tuple[str, str], Sighting]  # by node and replica
NOWHERE: Sightings = {}


@dataclass(slots=True)
class Fleet:
    """An index over the node views it saw last."""

    cluster: ClusterSpec | None = None
    views: dict[str, NodeView] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)  # in name order
    by_instance: dict[str, dict[str, tuple[Sighting, ...]]] = field(default_factory=dict)
    by_situation: dict[str, dict[str, Seen]] = field(default_factory=dict)  # where placed → instance
    renaming: dict[str, Seen] = field(default_factory=dict)  # by the name under which they still run
    _by_node: dict[str, dict[str, Sighting]] = field(default_factory=dict)
    failing: dict[str, Mapping[str, str]] = field(default_factory=dict)  # node → digest it cannot install → why
    changed: set[str] = field(default_factory=set)  # nodes whose view is another one than last time
    stirred: set[str] = field(default_factory=set)  # instances of which a sighting changed
    moved: bool = True  # what placement may know changed: everything is looked at again
    _open: str = ""  # names the set of nodes that take new replicas

    def of(self, instance: str) -> Sightings:
        return self.by_instance.get(instance, NOWHERE)

    def on(self, node: str) -> Iterable[Sighting]:
        """What is seen on a node, in no order."""
        return self._by_node.get(node, {}).values()

    def look(self, cluster: ClusterSpec, observed: ObservedState) -> None:
        """Take in the fleet as it is now; `changed`, `stirred` and `moved` then say what is new about it."""
        if cluster is not self.cluster and cluster == self.cluster:
            cluster = self.cluster  # written anew, means the same
        sites = self._look_at_sites(cluster, observed)
        self.moved = sites != self.sites or cluster is not self.cluster
        if self.moved:
            names = "\n".join(s.name for s in sites.values() if s.alive and s.listed and not s.cordoned)
            self._open = hashlib.sha256(names.encode()).hexdigest()
        self.sites, self.cluster = sites, cluster
        self.changed, self.stirred = set(), set()
        for name in observed.nodes.keys() | self.views.keys():
            view = observed.nodes.get(name)
            if view is not self.views.get(name):
                self.changed.add(name)
                self._look_at(name, view)

    def situation(self, commit: str) -> str:
        """12 hex digits that name what placement starts from: a commit, and the nodes that take new replicas."""
        return hashlib.sha256(f"{commit}\n{self._open}".encode()).hexdigest()[:12]

    def _look_at_sites(self, cluster: ClusterSpec, observed: ObservedState) -> dict[str, Site]:
        same_cluster = cluster is self.cluster
        sites = {}
        for name in sorted(cluster.nodes.keys() | observed.nodes.keys()):
            view = observed.nodes.get(name)
            if same_cluster and view is not None and view is self.views.get(name):
                sites[name] = self.sites[name]
            else:
                sites[name] = _site(name, cluster, view)
        return sites

    def _look_at(self, name: str, view: NodeView | None) -> None:
        before = self._by_node.get(name, {})
        after = {} if view is None else {sighting.replica: sighting for sighting in sightings(view)}
        for replica in before.keys() | after.keys():
            old, new = before.get(replica), after.get(replica)
            if old == new:
                continue
            for sighting in (old, new):
                if sighting is not None:
                    self.stirred.add(sighting.instance)
            self._replace(old, new)
        self._by_node[name] = after
        self.failing.pop(name, None)
        if view is not None and view.package_errors:
            self.failing[name] = view.package_errors
        if view is None:
            self.views.pop(name, None)
        else:
            self.views[name] = view

    def _replace(self, old: Sighting | None, new: Sighting | None) -> None:
        if old is not None and old.placed:
            placed = self.by_situation[old.placed]
            _forget(placed, old.instance, old)
            if not placed:
                del self.by_situation[old.placed]
        if new is not None and new.placed:
            self.by_situation.setdefault(new.placed, {}).setdefault(new.instance, {})[new.node, new.replica] = new
        if old is not None and old.old_name:
            _forget(self.renaming, old.old_name, old)
        if new is not None and new.old_name:
            self.renaming.setdefault(new.old_name, {})[new.node, new.replica] = new
        if old is not None:
            replicas = self.by_instance[old.instance]
            rest = tuple(s for s in replicas[old.replica] if s.node != old.node)
            if rest:
                replicas[old.replica] = rest
            else:
                del replicas[old.replica]
                if not replicas:
                    del self.by_instance[old.instance]
        if new is not None:
            replicas = self.by_instance.setdefault(new.instance, {})
            there = replicas.get(new.replica, ())
            replicas[new.replica] = tuple(sorted((*there, new), key=lambda s: s.node)) if there else (new,)


def _forget(index: dict[str, Seen], key: str, sighting: Sighting) -> None:
    del index[key][sighting.node, sighting.replica]
    if not index[key]:
        del index[key]


def sightings(view: NodeView) -> Iterator[Sighting]:
    """Every replica a node was told to run, or still shows although it was told not to, or does not remember being told."""
    rows = view.replicas
    entries = () if view.assignment is None else view.assignment.replicas
    taken = {entry.replica for entry in entries}
    for entry in entries:
        old = rows.get(entry.renamed_from) if entry.renamed_from is not None else None
        going = "" if old is None or old.replica in taken or old.state is ReplicaState.STOPPED else old.replica
        yield Sighting(view.name, entry.replica, entry.instance, entry, rows.get(entry.replica) or old, going)
    taken |= {entry.renamed_from for entry in entries if entry.renamed_from is not None}
    for name, row in rows.items():
        if name not in taken and row.state is not ReplicaState.STOPPED:
            yield Sighting(view.name, name, row.instance, None, row)


def _site(name: str, cluster: ClusterSpec, view: NodeView | None) -> Site:
    spec = cluster.nodes.get(name)
    presence = Presence.ABSENT if view is None else view.presence
    labels = {} if view is None else dict(view.labels)
    capacity = Capacity() if view is None else view.capacity
    wish = None if view is None else view.wish
    draining, deadline = (wish.drain, wish.deadline) if wish is not None else (False, None)
    if spec is None:
        return Site(name, presence, False, wish is not None, draining, deadline, labels, capacity)
    declared = {key: value for key, value in spec.capacity.model_dump().items() if value is not None}
    if declared:
        capacity = capacity.model_copy(update=declared)
    cordoned = spec.cordoned or wish is not None
    return Site(name, presence, True, cordoned, draining, deadline, labels | dict(spec.labels), capacity)
