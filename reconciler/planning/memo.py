"""What the last plan found out, so that the next one costs what changed."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.clock import Monotonic
from reconciler.model.desired import DesiredState, InstanceSpec
from reconciler.model.observed import ObservedState, Record
from reconciler.model.plan import Plan
from reconciler.planning.capacity import Rooms
from reconciler.planning.fleet import Fleet
from reconciler.planning.targets import Texts


@dataclass(slots=True)
class Memo:
    """Opaque to callers: give the same one to every call. The plan is the same as without it, only sooner."""

    fleet: Fleet = field(default_factory=Fleet)
    rooms: Rooms = field(default_factory=Rooms)
    instances: dict[str, InstanceSpec] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    waves: dict[str, int] = field(default_factory=dict)
    restless: set[str] = field(default_factory=set)  # instances that were not quiet, or are not in Git any more
    loose: set[str] = field(default_factory=set)  # nodes whose assignment was edited or carried packages ahead
    texts: Texts = field(default_factory=dict)
    last: tuple[DesiredState, ObservedState, Record, Plan] | None = None

    def same(self, desired: DesiredState, observed: ObservedState, record: Record, now: Monotonic) -> Plan | None:
        """The last plan, if nothing it was made of has changed since and nothing has lapsed."""
        if self.last is None:
            return None
        before, seen, known, plan = self.last
        if desired is not before or (record is not known and record != known):
            return None
        if plan.look_again_at is not None and now >= plan.look_again_at:
            return None
        if observed is seen:
            return plan
        if observed.epoch != seen.epoch or observed.warnings != seen.warnings or len(observed.nodes) != len(seen.nodes):
            return None
        nodes = seen.nodes
        same = all(nodes.get(name) is view for name, view in observed.nodes.items())
        return plan if same else None

    def reordered(self, desired: DesiredState) -> bool:
        """Whether instances came or went, or one changed what it waits for, since `open_instances` was asked last."""
        before = self.instances
        if self.last is None or before.keys() != desired.instances.keys():
            return True
        return any(
            spec is not (old := before[name]) and (spec.wave, spec.depends_on) != (old.wave, old.depends_on)
            for name, spec in desired.instances.items()
        )

    def open_instances(self, desired: DesiredState) -> set[str]:
        """Instances that may not be quiet: everything, or what changed and what was not quiet before."""
        before, self.instances = self.instances, dict(desired.instances)
        if self.fleet.moved or self.last is None:
            return desired.instances.keys() | self.fleet.by_instance.keys()
        changed = {name for name, spec in desired.instances.items() if before.get(name) is not spec}
        changed |= before.keys() - desired.instances.keys()
        return changed | self.restless | self.fleet.stirred

    def forget(self) -> None:
        """Start anew: a plan was not finished, so what was noted on the way may be half of the truth."""
        self.fleet, self.rooms, self.texts, self.last = Fleet(), Rooms(), {}, None
        self.instances, self.positions, self.waves = {}, {}, {}
        self.restless, self.loose = set(), set()
