"""Pure: whether what a person approved is still what would happen (DESIGN §5)."""

from __future__ import annotations

from collections.abc import Container, Mapping

from agent.errors import Refused
from reconciler.model.plan import Cause, HoldReason, Plan


class PlanChanged(Refused):
    """The plan is not the one that was shown: look at it again."""

    code = "PLAN_CHANGED"


def promoted(plan: Plan, ids: Container[str]) -> dict[str, str]:
    """Instance → specHash that goes past its canaries because a person approved a change that waited for just that."""
    waiting = {hold.change for hold in plan.holds if hold.reason is HoldReason.CANARY_WAITS}
    return {c.instance: c.to_hash for c in plan.changes if c.id in waiting and c.id in ids}


def approve(plan: Plan, seen: Mapping[str, str]) -> frozenset[str]:
    """The change ids that may run. `seen` maps the ids a person saw to their replicas.

    A change that was seen and is gone because it is done is fine. One that differs now (same replica, other id), or a new one
    that a commit caused, is not: raises PlanChanged and names them.
    """
    now = {change.id: change for change in plan.changes}
    altered = {change.replica for change in plan.changes if change.id not in seen} & {
        replica for id_, replica in seen.items() if id_ not in now
    }
    new = {
        change.replica
        for change in plan.changes
        if change.id not in seen and change.cause in (Cause.COMMIT, Cause.ROLLBACK) and change.replica not in altered
    }
    if altered or new:
        parts = [f"altered: {', '.join(sorted(altered))}"] if altered else []
        parts += [f"new: {', '.join(sorted(new))}"] if new else []
        raise PlanChanged("; ".join(parts), hint="make and read the plan again: tdie plan")
    return frozenset(seen)
