"""Pure: the fleet as it would look after the targets of a plan were carried out perfectly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agent.clock import Monotonic
from agent.wire import Accepted, Assignment, Capacity, LeaseStatus, ReplicaOrder, ReplicaState
from reconciler.model.desired import DesiredState, NodeSpec
from reconciler.model.observed import NodeView, ObservedState, Presence, Record, ReplicaView
from reconciler.model.plan import NodeTarget, Plan
from reconciler.planning import plan

LONG_AGO = 86_400.0  # seconds: longer than any soak time anybody sets


def sent(plan_: Plan, observed: ObservedState, nodes: Iterable[str] | None = None) -> ObservedState:
    """The fleet after the targets went out (all, or those of some nodes), before any node acted on them."""
    chosen = plan_.targets.keys() if nodes is None else plan_.targets.keys() & set(nodes)
    told = {name: _told(observed, plan_.commit, plan_.targets[name]) for name in sorted(chosen)}
    return replace(observed, nodes={**observed.nodes, **told})


def executed(
    plan_: Plan, observed: ObservedState, now: Monotonic, *, nodes: Iterable[str] | None = None, soaked: bool = True
) -> ObservedState:
    """The fleet after the targets (all, or those of some nodes) were carried out: packages installed, replicas healthy.

    With `soaked` what is new counts as healthy for a day, otherwise since `now`.
    """
    chosen = plan_.targets.keys() if nodes is None else plan_.targets.keys() & set(nodes)
    after = sent(plan_, observed, chosen)
    since = Monotonic(now - LONG_AGO) if soaked else now
    done = {name: carried_out(after.nodes[name], since) for name in sorted(chosen)}
    return replace(after, nodes={**after.nodes, **done})


def carried_out(view: NodeView, since: Monotonic) -> NodeView:
    """A node that did everything it was told; replicas that ran as ordered are left as they were."""
    assignment = view.assignment
    if assignment is None:
        return view
    rows = {}
    for order in assignment.replicas:
        row = view.replicas.get(order.replica)
        if row is None and order.renamed_from is not None:
            row = view.replicas.get(order.renamed_from)
            row = None if row is None else replace(row, replica=order.replica, instance=order.instance)
        as_ordered = row is not None and row.spec_hash == order.spec_hash and row.healthy
        rows[order.replica] = _leased(order, row if row is not None and as_ordered else _running(order, since))
    return replace(
        view,
        accepted=Accepted(epoch=assignment.epoch, generation=assignment.generation, digest=assignment.digest),
        replicas=rows,
        installed=view.installed | {order.package.digest for order in assignment.packages},
    )


def _leased(order: ReplicaOrder, row: ReplicaView) -> ReplicaView:
    """It has the lease that it needs, if nothing else is known of that."""
    needs = order.policy.lease != "none" and row.lease is None
    return replace(row, lease=LeaseStatus(state="held")) if needs else row


def empty_fleet(desired: DesiredState, epoch: int = 1) -> ObservedState:
    """Every listed node alive, with nothing installed or running."""
    return ObservedState(epoch, {name: _idle(spec) for name, spec in sorted(desired.cluster.nodes.items())})


def as_if_running(desired: DesiredState, now: Monotonic) -> ObservedState:
    """A fleet in which everything a desired state asks for runs and is healthy, all listed nodes alive.

    What has no place there stays out. Made by the planner itself, with waves, windows and approvals set aside.
    """
    sync = replace(desired.cluster.sync, mode="auto")
    instances = {
        name: replace(spec, depends_on=(), wave=0, suspend=False, moved_from=None)
        for name, spec in desired.instances.items()
    }
    eager = replace(desired, cluster=replace(desired.cluster, sync=sync), instances=instances)
    fleet = empty_fleet(desired)
    return executed(plan(eager, fleet, Record(), now), fleet, now)


def _idle(spec: NodeSpec) -> NodeView:
    return NodeView(
        spec.name, Presence.ALIVE, labels=dict(spec.labels), capacity=Capacity(**spec.capacity.model_dump())
    )


def _told(observed: ObservedState, commit: str, target: NodeTarget) -> NodeView:
    view = observed.nodes[target.node]
    assignment = Assignment(
        cluster="",
        node=target.node,
        epoch=observed.epoch,
        generation=view.next_generation,
        commit=commit,
        packages=target.packages,
        replicas=target.replicas,
        digest=target.digest,
    )
    return replace(view, assignment=assignment, next_generation=view.next_generation + 1)


def _running(order: ReplicaOrder, since: Monotonic) -> ReplicaView:
    return ReplicaView(
        replica=order.replica,
        instance=order.instance,
        spec_hash=order.spec_hash,
        package=order.spec.package,
        state=ReplicaState.STARTED,
        healthy=True,
        since=since,
        commit=order.commit,
        ordered_hash=order.spec_hash,
        ordered_since=since,
    )
