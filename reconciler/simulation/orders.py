"""What must hold of every claim and assignment at the moment an agent takes it over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.client import ANSWER
from agent.wire import Assignment, ReplicaOrder
from reconciler.model.desired import DesiredState, InstanceSpec
from reconciler.model.where import matches
from reconciler.simulation.truth import LAG, Truth, instance_of, renamed, wanted

TOLD = 600.0  # seconds in which a node that cannot be reached may have said last that it had lost a lease
UNKNOWN = 60.0  # seconds after a keeper was lost
AT_ONCE = 5.0  # seconds within which instances count as pruned together
STORM = (60, 10.0)  # assignments to one node, within seconds


@dataclass(slots=True)
class Orders:
    """Judges what controllers tell agents."""

    truth: Truth
    _claimed: dict[str, tuple[str, int]] = field(default_factory=dict)  # node → controller and epoch of its last claim
    _replaced: bool = False
    _sent_at: dict[tuple[str, str, tuple[int, int]], float] = field(default_factory=dict)
    _sent: dict[str, dict[str, float]] = field(default_factory=dict)  # node → replicas sent to it last → since when
    _sends: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _pruned: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))  # commit → instance → when

    def sent(self, controller: str, node: str, assignment: Assignment) -> None:
        self._sent_at[controller, node, assignment.number] = self.truth.clock.now()
        came, now = self._sent.get(node, {}), self.truth.clock.now()
        self._sent[node] = {order.replica: came.get(order.replica, now) for order in assignment.replicas}
        if not self.truth.world.certain(controller):
            self.truth.broken("nothing is sent without certainty", f"{controller} to {node}: {assignment.number}")

    def claimed(self, controller: str, node: str, epoch: int) -> None:
        self.truth.note("claimed", node, controller, epoch)
        _, before = self._claimed.get(node, ("", 0))
        if epoch < before:
            self.truth.broken("a replaced leader is not obeyed", f"{node}: {controller} claims it, {epoch} < {before}")
        self._claimed[node] = (controller, epoch)

    def forgets(self) -> None:
        """Consul is about to lose its data: who lost its ledger and was told nothing since cannot know the latest epoch then."""
        for node, told in self.truth.forgot.items():
            if not told and node in self._claimed:
                controller, _ = self._claimed[node]  # which may lead on
                self._claimed[node] = (controller, 0)

    def forgot(self, node: str) -> None:
        """The agent there lost its ledger: it does not know any more what it accepted."""
        self.truth.note("forgot", node)
        for replica, since in self._sent.get(node, {}).items():
            ran = self.truth.row(node, replica) is not None or self.truth.well_until.get((node, replica), -1.0) >= since
            if not ran:  # it was on its way there, which nobody knows any more
                self.truth.known.discard(replica)
        self.truth.assigned.pop(node, None)
        self.truth.forgot[node] = 0

    def accepted(self, controller: str, node: str, after: Assignment) -> None:
        """The assignment is on the node's disk."""
        truth, before = self.truth, self.truth.assigned.get(node)
        truth.note("accepted", node, after.epoch, after.generation, after.digest[:12])
        self._no_storm(node)
        who, epoch = self._claimed.get(node, ("", 0))
        if who != controller:
            truth.broken(
                "a replaced leader is not obeyed", f"{node}: {controller} {after.number}, claimed by {who} {epoch}"
            )
        if before is not None and not _follows(before, after):
            truth.broken("numbers only grow", f"{node}: {before.number} → {after.number}")
        now = truth.clock.now()
        sent = self._sent_at.get((controller, node, after.number), now)
        if now > sent + ANSWER:
            truth.broken("nothing is obeyed too late", f"{node}: {after.number}, {now - sent:.1f} s after it was sent")
        # Its sender has been replaced: others were told since, and this node could not know that.
        self._replaced = after.epoch < max(epoch for _, epoch in self._claimed.values())
        desired = truth.commits.get(after.commit)
        if desired is None:
            truth.broken("trouble with Git changes nothing", f"{node}: {after.commit} is no good commit")
        elif before is None or after.number != before.number:
            if before is not None and truth.order.get(after.commit, -1) < truth.order.get(before.commit, -1):
                truth.broken("never back to an older commit", f"{node}: {before.commit[-4:]} → {after.commit[-4:]}")
            self._judge(node, before, after, desired)
        truth.assigned[node] = after
        if node in truth.forgot:
            truth.forgot[node] += 1

    def _judge(self, node: str, before: Assignment | None, after: Assignment, desired: DesiredState) -> None:
        old = {} if before is None else {order.replica: order for order in before.replicas}
        new = {order.replica: order for order in after.replicas}
        renamed = {order.renamed_from for order in after.replicas if order.renamed_from}
        for replica, order in old.items():
            if replica not in new and replica not in renamed:
                self._leaves(node, order, desired)
        for replica, order in new.items():
            if replica not in old and not order.renamed_from:
                self._comes(node, order, desired)
        self._what_is_missed_counts(node, old, new, desired)
        self._prune_limit(old, new, desired)

    # ------------------------------------------------------------------------------------------- what leaves

    def _leaves(self, node: str, order: ReplicaOrder, desired: DesiredState) -> None:
        """What leaves a node although it works there is not wanted any more, or is told to run elsewhere."""
        truth = self.truth
        if instance_of(order, desired) is None:
            truth.known.discard(order.replica)
            return
        elsewhere = any(
            order.replica in {held.replica for held in assignment.replicas}
            for name, assignment in truth.assigned.items()
            if name != node
        )
        if order.policy.lease != "none":  # both are told at once: the lease says when the other one may start
            elsewhere = elsewhere or any(order.replica in told for name, told in self._sent.items() if name != node)
        if (
            node in truth.asked and not elsewhere
        ):  # a person's deadline: from then on it is missed as little as a new one
            truth.known.discard(order.replica)
            return
        row = truth.row(node, order.replica)
        if elsewhere or row is None or not row.healthy:
            return
        promise = "a wanted replica keeps a home"
        if truth.world.git_in_trouble():
            promise = "trouble with Git changes nothing"
        truth.broken(promise, f"{order.replica} leaves {node} and is nowhere else")

    def _prune_limit(
        self, old: Mapping[str, ReplicaOrder], new: Mapping[str, ReplicaOrder], desired: DesiredState
    ) -> None:
        gone = {order.instance for replica, order in old.items() if replica not in new}
        gone -= desired.instances.keys() | {order.instance for order in new.values()}
        gone -= {spec.moved_from for spec in desired.instances.values() if spec.moved_from}
        if not gone or desired.commit in self.truth.confirmed:
            return
        now, pruned = self.truth.clock.now(), self._pruned[desired.commit]
        for name in gone:
            pruned.setdefault(name, now)
        together = {name for name, at in pruned.items() if now - at < AT_ONCE}
        live = {order.instance for node in self.truth.assigned for order in self.truth.held(node)} | together
        most = max(1, desired.cluster.sync.max_prune.of(len(live)))
        if len(together) > most and desired.cluster.sync.prune != "all":
            self.truth.broken("never pruned beyond the limit", f"{sorted(together)} of {len(live)}, at most {most}")

    def _what_is_missed_counts(
        self,
        node: str,
        old: Mapping[str, ReplicaOrder],
        new: Mapping[str, ReplicaOrder],
        desired: DesiredState,
    ) -> None:
        """A replica that works is not taken away while as many as may be are missed already, whoever took those."""
        for replica, order in old.items():
            spec = instance_of(order, desired)
            after = new.get(replica)
            changed = after is not None and after.spec.package != order.spec.package
            if spec is None or not changed or node in self.truth.asked or not self._long_well(node, replica):
                continue
            missed = sorted(r for r in wanted(desired, spec) if r != replica and self._missed(r, spec))
            most = max(1, spec.update.max_parallel.of(len(wanted(desired, spec))))
            if len(missed) >= most and not self.truth.well(replica, but=node):
                self.truth.broken("what is missed counts", f"{replica} goes while {missed} are away, at most {most}")

    def _long_well(self, node: str, replica: str) -> bool:
        row = self.truth.row(node, replica)
        return row is not None and row.healthy and self.truth.clock.now() - row.since > LAG

    def _missed(self, replica: str, spec: InstanceSpec) -> bool:
        """It once was well, and for longer than any leader needs to hear of it nothing of it works that can be reached."""
        truth, now = self.truth, self.truth.clock.now()
        if replica not in truth.known or truth.needless(replica, spec):
            return False
        for name, machine in truth.world.machines.items():
            row = machine.rows.get(replica) if machine.up else None
            if row is not None and now - machine.keeper_lost_at < UNKNOWN:
                return False  # what ended with the keeper is not seen before there is one again
            ended = truth.well_until.get((name, replica))
            if (row is not None and row.healthy) or (ended is not None and now - ended < LAG):
                return False
        return True

    # ------------------------------------------------------------------------------------------- what comes

    def _comes(self, node: str, order: ReplicaOrder, desired: DesiredState) -> None:
        spec = instance_of(order, desired) or renamed(order, desired)
        if spec is None:
            self.truth.broken("nothing starts that nobody wants", f"{order.replica} on {node}")
            return
        homes = [name for name in self.truth.assigned if name != node and self._runs(name, order.replica)]
        for home in sorted(homes, key=lambda name: self._ordered(name, order.replica))[-1:]:  # others were left already
            if not (self._replaced or self._may_leave(home, order, spec, desired)):
                detail = f"{order.replica} starts on {node}, and its home {home} was not lost"
                self.truth.broken("moved only when lost or told to", detail)
        # Whether it ran before, also under the name it had then: starting it again is healing, and waits for nobody.
        names = {order.replica, f"{spec.moved_from or spec.name}{order.replica.removeprefix(spec.name)}"}
        ordered = any(not names.isdisjoint(told) for name, told in self._sent.items() if name != node)
        if not homes and names.isdisjoint(self.truth.known) and not ordered:
            self._in_turn(order, spec, desired)

    def _ordered(self, node: str, replica: str) -> tuple[int, int]:
        return next((held.ordered for held in self.truth.held(node) if held.replica == replica), (0, 0))

    def _runs(self, node: str, replica: str) -> bool:
        told = any(held.replica == replica for held in self.truth.held(node))
        row = self.truth.row(node, replica)
        leaves = replica not in self._sent.get(node, (replica,))  # told so a moment ago
        return told and not leaves and row is not None and row.state == "Started"

    def _may_leave(self, home: str, order: ReplicaOrder, spec: InstanceSpec, desired: DesiredState) -> bool:
        if (
            order.policy.lease != "none"
            and self.truth.clock.now() - self.truth.fenced.get((home, order.replica), -1e9) < TOLD
        ):
            return True  # it said so before it fell silent, and the lease decides who runs
        if order.policy.lease != "none" and self.truth.world.barred(order.replica, home):
            row = self.truth.row(home, order.replica)
            if row is None or row.order.lease is None:
                return True  # it runs there from before it needed a lease, which it cannot have there
        site, truth = desired.cluster.nodes.get(home), self.truth
        if site is None or home in truth.asked or truth.world.servers.disturbed():
            return True
        if not matches(spec.placement.where, dict(site.labels), home) or spec.placement.max_per_node is not None:
            return True
        return truth.world.lost_lately(home, LAG)

    def _in_turn(self, order: ReplicaOrder, spec: InstanceSpec, desired: DesiredState) -> None:
        """What it depends on was well as this commit wants it, and so was every earlier wave."""
        for dependency in spec.depends_on:
            late = self._never_well(desired, dependency.instance)
            if late:
                self.truth.broken(
                    "what it depends on is ready first", f"{order.replica} starts before {late[0]} was well"
                )
        if order.commit != desired.commit:
            return
        mine = _wave(desired, spec.name)
        for other in desired.instances:
            if _wave(desired, other) < mine and (late := self._never_well(desired, other)):
                self.truth.broken("an earlier wave comes first", f"{order.replica} starts before {late[0]} was well")

    def _never_well(self, desired: DesiredState, instance: str) -> list[str]:
        spec = desired.instances.get(instance)
        if spec is None or spec.per_node is not None:
            return []
        return sorted(r for r in wanted(desired, spec) if (r, spec.spec_hash) not in self.truth.ran_well)

    def _no_storm(self, node: str) -> None:
        now, (most, within) = self.truth.clock.now(), STORM
        recent = [at for at in self._sends[node] if now - at < within] + [now]
        self._sends[node] = recent
        if len(recent) > most:
            self.truth.broken("no storm of orders", f"{node}: {len(recent)} assignments within {within:g} s")


def _wave(desired: DesiredState, instance: str) -> int:
    """The wave of an instance: never an earlier one than that of what it depends on."""
    spec = desired.instances.get(instance)
    return 0 if spec is None else max([spec.wave, *(_wave(desired, each.instance) for each in spec.depends_on)])


def _follows(before: Assignment, after: Assignment) -> bool:
    """A later number, or the same assignment once more."""
    return after.number > before.number or (after.number == before.number and after.digest == before.digest)
