"""The planner's own working values: what one plan may know (World), and what follows for one instance (Case)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.clock import Monotonic
from agent.wire import PackageRef, ReplicaOrder, ReplicaPolicy, ReplicaState
from reconciler.model.desired import DesiredState, InstanceSpec
from reconciler.model.observed import NodeView, ObservedState, Presence, Record, ReplicaView
from reconciler.model.plan import Cause, Change, Hold, HoldReason, Verdict
from reconciler.planning.capacity import Rooms
from reconciler.planning.explain import differences
from reconciler.planning.fleet import Fleet, Sighting
from reconciler.planning.ids import change_id
from reconciler.planning.mass_failure import MassFailure
from reconciler.planning.outlook import Outlook
from reconciler.planning.place import Openings


@dataclass(slots=True)
class World:
    """Everything a rule may look at."""

    desired: DesiredState
    observed: ObservedState
    now: Monotonic
    fleet: Fleet
    rooms: Rooms
    openings: Openings
    outlook: Outlook
    positions: dict[str, int]  # of instances in the order of waves
    # Nodes that never told this leader what they run:
    unheard: Mapping[
        str, frozenset[str] | None
    ]  # those that are silent, with what Consul shows there (None: not known)
    lost_unheard: Mapping[str, NodeView]  # those that are lost
    forgotten: tuple[str, ...]  # those that Consul may have forgotten when it lost its data: each may run anything
    forgetful: tuple[
        NodeView, ...
    ]  # those that show replicas, or ran them before, and do not remember who ordered them
    lost: tuple[str, ...]  # listed nodes that are lost
    record: Record
    mass_failure: MassFailure | None  # so many of them at once that nothing is simply moved
    _unconfirmed: tuple[str, ...] | None = field(default=None, init=False)  # worked out when first asked for

    def unconfirmed(self) -> tuple[str, ...]:
        """The nodes that may still have other orders than those they were sent last."""
        if self._unconfirmed is None:
            self._unconfirmed = tuple(name for name, view in self.observed.nodes.items() if not view.confirmed)
        return self._unconfirmed

    def view(self, node: str) -> NodeView:
        return self.observed.nodes[node]

    def may_run(self, *names: str) -> tuple[str, ...]:
        """The nodes that may run a replica, under one of these names, although this leader was never told so."""
        return tuple(node for node, shown in self.unheard.items() if shown is None or not shown.isdisjoint(names))

    def may_have_run(self, *names: str) -> bool:
        """Whether a lost node may have run a replica, under one of these names, although this leader was never told so."""
        lost = self.lost_unheard.values()
        return any(view.may_run is None or not view.may_run.isdisjoint(names) for view in lost)

    def ran(self, name: str) -> bool:
        """Whether a replica ran on a node that has forgotten everything since, and is missed."""
        return any(name in view.ran for view in self.forgetful)

    def shown_on_lost(self, *names: str) -> str:
        """The lost node on which Consul shows a replica under one of these names; empty if there is none."""
        return next((node for node, view in self.lost_unheard.items() if not view.shown.isdisjoint(names)), "")

    def presence(self, node: str) -> Presence:
        return self.fleet.sites[node].presence

    def rebalanced(self, spec: InstanceSpec, home: Sighting, other: Sighting) -> bool:
        """Whether a replica got its home beside another one that could have kept it: this situation chose the home only."""
        gradual = spec.placement.rebalance == "gradual" and not self.fleet.sites[other.node].cordoned
        return gradual and self.outlook.fresh(home) and not self.outlook.fresh(other)

    def forsaken(self, sighting: Sighting) -> bool:
        """Whether the replica does not run there and will not, as far as can be known: another node may be told to run it.

        Its node is lost; or it has no way to us or to Consul and says itself that it was fenced, and the lock sees to the rest.
        """
        site, row = self.fleet.sites[sighting.node], sighting.row
        if site.presence is Presence.LOST:
            return True
        return site.silent and row is not None and row.lease is not None and row.lease.state == "fenced"


@dataclass(slots=True)
class Step:
    """A change, and what carrying it out means for assignments. Without a hold it is carried out by this plan."""

    change: Change
    puts: ReplicaOrder | None = None  # at change.node
    drops: tuple[tuple[str, str], ...] = ()  # (node, replica)
    hold: Hold | None = None
    in_flight: bool = False  # sent already
    prunes: bool = False  # of an instance that is not in Git any more
    dead: bool = False  # what would be taken away does not work anyway
    forced: bool = False  # a deadline has passed: availability does not hold it back
    rebalances: bool = False  # only makes the fleet more even
    hands_over: bool = False  # a copy that works ends for one that waits for that
    adopts: bool = False  # runs there already, or ran, on a node that does not remember who ordered it

    @property
    def takes_away(self) -> bool:
        """Whether the update policy limits how many of these go at once."""
        verdict = self.change.verdict
        if self.hands_over:
            return True
        if verdict is Verdict.MOVE:
            return self.puts is not None and not self.forced
        return verdict in (Verdict.REPLACE, Verdict.RECONFIGURE) and not self.in_flight

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes whose assignment it changes."""
        put = () if self.puts is None else (self.change.node,)
        return tuple(sorted({*put, *(node for node, _ in self.drops)}))

    def held(self, reason: HoldReason, detail: str, on: tuple[str, ...] = (), until: Monotonic | None = None) -> Step:
        """The same step, which waits; the first reason given stays."""
        if self.hold is None:
            change = self.change
            self.hold = Hold(change.id, change.replica, change.instance, reason, detail, on, until)
        return self


@dataclass(frozen=True, slots=True)
class Standing:
    """A wanted replica as it counts for its instance's availability."""

    replica: str
    node: str
    entry: ReplicaOrder
    row: ReplicaView | None
    healthy: bool  # reported as ordered, healthy, on a node that answers
    new: bool  # ordered with the wanted spec


@dataclass(slots=True)
class Case:
    """What follows for one instance."""

    instance: str
    spec: InstanceSpec | None = None  # None: not in Git any more
    steps: list[Step] = field(default_factory=list)
    patches: list[tuple[str, ReplicaOrder]] = field(
        default_factory=list
    )  # entries that change without a process noticing
    standings: list[Standing] = field(default_factory=list)
    missing: int = 0  # wanted replicas that no node has been told to run
    lapses: list[Monotonic] = field(default_factory=list)  # when time alone changes something here
    stable: bool = False  # its rollout has gone well, which is to be remembered
    settling: bool = False  # … or may soon have, or have failed
    failed: str = ""  # why its rollout has failed so that the commit may be taken back

    @property
    def healthy(self) -> bool:
        return not self.missing and all(standing.healthy for standing in self.standings)

    @property
    def started(self) -> bool:
        """Every replica's process runs, healthy or not."""
        return not self.missing and all(
            s.row is not None and s.row.spec_hash == s.entry.spec_hash and s.row.state is ReplicaState.STARTED
            for s in self.standings
        )

    @property
    def quiet(self) -> bool:
        """Nothing to do and nothing to wait for, until one of its replicas, its document or the cluster changes."""
        return not self.steps and not self.patches and self.healthy


def make_change(
    world: World,
    verdict: Verdict,
    cause: Cause,
    *,
    replica: str,
    instance: str,
    node: str,
    spec: InstanceSpec | None = None,
    before: Sighting | None = None,
    from_node: str = "",
    reason: str = "",
) -> Change:
    """A change from what a sighting shows to what a document wants."""
    from_hash, from_package = _was(before)
    to_hash, to_package = ("", "") if spec is None else (spec.spec_hash, str(spec.spec.package))
    if verdict is Verdict.RENAME:
        to_hash, to_package = from_hash, from_package
    if cause is Cause.COMMIT and world.record.rolled_back:
        cause = Cause.ROLLBACK
    return Change(
        id=change_id(
            replica=replica,
            verdict=verdict,
            cause=cause,
            commit=world.desired.commit,
            node=node,
            from_node=from_node,
            from_hash=from_hash,
            to_hash=to_hash,
        ),
        replica=replica,
        instance=instance,
        verdict=verdict,
        cause=cause,
        commit=world.desired.commit,
        node=node,
        from_node=from_node,
        from_hash=from_hash,
        to_hash=to_hash,
        from_package=from_package,
        to_package=to_package,
        from_replica=before.replica if before is not None and before.replica != replica else "",
        reason=reason,
        wave=_position(world, instance),
    )


def _position(world: World, instance: str) -> int:
    """The place of an instance in the order of waves; what left Git goes last."""
    found = world.positions.get(instance)
    return max(world.positions.values(), default=0) if found is None else found


def _was(before: Sighting | None) -> tuple[str, str]:
    if before is None:
        return "", ""
    entry, row = before.entry, before.row
    if entry is not None:
        return entry.spec_hash, str(entry.spec.package)
    return ("", "") if row is None else (row.spec_hash, str(row.package))


def policy_of(world: World, spec: InstanceSpec) -> ReplicaPolicy:
    """How the replicas of an instance are looked after in this cluster."""
    if world.desired.cluster.sync.self_heal:
        return spec.policy
    return spec.policy.model_copy(update={"heal": False})


def make_order(world: World, spec: InstanceSpec, replica: str, node: str, *, instance: str = "") -> ReplicaOrder:
    """A new entry for a node; it outranks every entry of the same replica that can be seen. `instance`: its name so far."""
    instance = instance or spec.name
    epoch = world.observed.epoch
    ordered = (epoch, world.view(node).next_generation)
    placed = world.outlook.situation
    for sighting in world.fleet.of(instance).get(replica, ()):
        if sighting.entry is None:
            continue
        if sighting.node == node:
            placed = sighting.entry.placed
        else:
            held = sighting.entry.ordered
            ordered = max(ordered, (held[0], held[1] + 1))
    return ReplicaOrder(
        replica=replica,
        instance=instance,
        spec=spec.spec,
        spec_hash=spec.spec_hash,
        policy=policy_of(world, spec),
        commit=world.desired.commit,
        ordered=ordered,
        placed=placed,
    )


def packages_of(order: ReplicaOrder) -> tuple[PackageRef, ...]:
    """What must be installed for an entry to run."""
    publisher = order.spec.publisher
    return (order.spec.package,) if publisher is None else (order.spec.package, publisher.package)


def change_of_spec(before: Sighting | None, spec: InstanceSpec) -> str:
    """What a replica's new spec changes, for people."""
    if before is None or before.entry is None:
        return ""
    return differences(before.entry.spec, spec.spec)
