"""What must hold whenever a host is started, stopped or changes, or a package goes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from agent.keeper.protocol import HostOrder, HostRow
from agent.steps import in_use, is_by_hand
from agent.wire import Assignment, ReplicaOrder
from reconciler.simulation.machine import LIVE
from reconciler.simulation.truth import Truth, instance_of, wanted

TRIES = (12, 10.0)  # of one and the same thing on one node, within seconds


@dataclass(slots=True)
class Processes:
    """Judges what agents do to hosts and packages."""

    truth: Truth
    _before: dict[tuple[str, str], HostRow] = field(default_factory=dict)
    _may_change: set[tuple[str, str]] = field(default_factory=set)  # hosts that something was done to
    _away: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # instance → replicas we took away
    _tries: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def row(self, node: str, row: HostRow) -> None:
        truth = self.truth
        truth.note("row", node, row.replica, row.state, row.healthy, row.spec_hash[:8])
        key = (node, row.replica)
        before = self._before.get(key)
        self._before[key] = row
        if row.healthy:
            truth.ran_well.add((row.replica, row.spec_hash))
            truth.known.add(row.replica)
            truth.well_until.pop(key, None)
            self._away[row.order.instance].discard(row.replica)
        elif before is not None and before.healthy:
            truth.well_until[key] = truth.clock.now()
        if before is not None and before.pid is not None and before.pid != row.pid:
            if key not in self._may_change:
                truth.broken(
                    "an agent's restart touches nothing", f"{row.replica} on {node}: pid {before.pid} → {row.pid}"
                )
            self._may_change.discard(key)

    def off(self, node: str) -> None:
        """The machine died, or nobody can reach it any more."""
        self.truth.note("off", node)
        machine = self.truth.world.machines[node]
        for entry in self.truth.held(node):
            self._away[entry.instance].discard(entry.replica)  # lost to a fault from here on
        if not machine.up:
            for key in [key for key in self._before if key[0] == node]:
                if self._before.pop(key).healthy:
                    self.truth.well_until[key] = self.truth.clock.now()

    def hurts(self, node: str, replica: str) -> None:
        self.truth.note("hurts", node, replica)
        self._may_change.add((node, replica))

    def renames(self, node: str, replica: str, order: HostOrder) -> None:
        self.truth.note("renames", node, replica, order.replica)
        self._before.pop((node, replica), None)
        self._away[order.instance].discard(replica)

    def starts(self, node: str, order: HostOrder, before: HostRow | None) -> None:
        truth = self.truth
        truth.note("starts", node, order.replica)
        self.tries(node, f"start {order.replica}")
        if before is not None and before.state in LIVE:
            truth.broken("an agent's restart touches nothing", f"{order.replica} on {node} is started, and it runs")
        there = truth.world.machines[node].packages
        codes = [order.component, *([order.publisher] if order.publisher else [])]
        for code in codes:
            if code.digest not in there:
                truth.broken(
                    "what runs is installed", f"{order.replica} on {node} starts without {code.name}@{code.version}"
                )

    def stops(self, node: str, row: HostRow) -> None:
        truth = self.truth
        truth.note("stops", node, row.replica)
        self._may_change.add((node, row.replica))
        held = truth.assigned.get(node)
        if is_by_hand(row.replica):
            if held is None or not held.policy.stop_manual:
                truth.broken("what others started is left alone", f"{row.replica} on {node}")
            return
        entry = next((order for order in truth.held(node) if order.replica == row.replica), None)
        if held is None:
            truth.broken("nothing stops without a cause", f"{row.replica} on {node}, which accepted no assignment")
        elif entry is not None and entry.policy.lease != "none" and row.order.lease is None:
            return  # it ran before a lease was asked for, and gives way to who has that now
        elif entry is not None and entry.spec_hash == row.spec_hash:
            truth.broken("nothing stops without a cause", f"{row.replica} on {node} runs exactly what is ordered")
        elif entry is None and any(self._takes_over(node, order, row.replica) for order in held.replicas):
            truth.broken("nothing stops without a cause", f"{row.replica} on {node} goes on under another name")
        # With the ledger went what ran there: what is ordered anew is ordered as it is wanted now, all at once.
        free = node in truth.asked or truth.forgot.get(node, 2) < 2
        if row.healthy and not free and not truth.well(row.replica, but=node):
            self._take_away(row, held)

    def _takes_over(self, node: str, order: ReplicaOrder, replica: str) -> bool:
        return order.renamed_from == replica and self.truth.row(node, order.replica) is None

    def _take_away(self, row: HostRow, held: Assignment | None) -> None:
        desired = self.truth.commits.get(held.commit) if held is not None else None
        order = ReplicaOrder.model_construct(replica=row.replica, instance=row.order.instance)
        spec = instance_of(order, desired) if desired is not None else None
        if desired is None or spec is None:
            return
        away = self._away[spec.name] = self._away[spec.name] & wanted(desired, spec)
        away.add(row.replica)
        missed = sorted(replica for replica in away if not self.truth.needless(replica, spec))
        most = max(self._most(commit, spec.name) for commit in self.truth.commits)
        if len(missed) > most:
            self.truth.broken("never more than maxParallel away", f"{spec.name}: {missed} of at most {most}")

    def _most(self, commit: str, instance: str) -> int:
        desired = self.truth.commits[commit]
        spec = desired.instances.get(instance)
        return 0 if spec is None else max(1, spec.update.max_parallel.of(len(wanted(desired, spec))))

    def removes(self, node: str, digest: str) -> None:
        self.truth.note("removes", node, digest[:12])
        machine = self.truth.world.machines[node]
        if digest in in_use(self.truth.assigned.get(node), machine.rows.values()):
            name = machine.packages[digest].package
            self.truth.broken("no package is deleted while it is used", f"{name} on {node}")

    def tries(self, node: str, what: str) -> None:
        """An agent does something that may fail: again and again, but not at once."""
        now, (most, within) = self.truth.clock.now(), TRIES
        recent = [at for at in self._tries[node, what] if now - at < within] + [now]
        self._tries[node, what] = recent
        if len(recent) > most:
            self.truth.broken(
                "nothing is tried again and again", f"{node}: {what} {len(recent)} times within {within:g} s"
            )
