"""Gates that do not depend on other instances: dry run, suspension, node locks, approval, windows."""

from __future__ import annotations

from reconciler.model.observed import Record
from reconciler.model.plan import Cause, HoldReason, Verdict
from reconciler.planning.cases import Case, Step, World

UNAPPROVED = frozenset(
    {Cause.DRIFT, Cause.NODE_LOST, Cause.DRAIN, Cause.LEASE, Cause.ROLLBACK}
)  # nobody is asked twice, or before something is healed


def gate(world: World, case: Case, record: Record) -> None:
    """Hold each step that somebody's word keeps back, the most general reason first."""
    mode = world.desired.cluster.sync.mode
    for step in case.steps:
        if step.in_flight:
            continue
        if mode == "dry-run":
            step.held(HoldReason.DRY_RUN, "sync.mode is dry-run")
        if case.spec is not None and case.spec.suspend:
            step.held(HoldReason.SUSPENDED, f"{case.instance} is suspended", (case.instance,))
        word = record.suspended.get("") or record.suspended.get(case.instance)
        if word and step.change.id not in record.approved:
            step.held(HoldReason.SUSPENDED, word, (case.instance,))
        _locked(world, step)
        change = step.change
        if change.cause in UNAPPROVED or change.id in record.approved:
            continue
        if mode == "manual":
            step.held(HoldReason.NOT_APPROVED, f"change {change.id} is not approved")
        elif not record.window.open:
            step.held(HoldReason.WINDOW_CLOSED, record.window.detail, (), record.window.until)


def _locked(world: World, step: Step) -> None:
    change = step.change
    named = (change.from_node,) if change.verdict is Verdict.MOVE else (change.node,)
    for node in dict.fromkeys((*step.nodes, *named)):
        view = world.observed.nodes.get(node)
        if view is not None and view.locked_by:
            step.held(HoldReason.NODE_LOCKED, f"{node} is locked: {view.locked_by}", (node,))
