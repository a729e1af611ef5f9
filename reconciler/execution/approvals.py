"""Pure: whether what a person approved is still what would happen (DESIGN §5)."""

from __future__ import annotations

from collections.abc import Container, Mapping

from agent.errors import Refused
from reconciler.model.observed import Record
from reconciler.model.plan import Cause, HoldReason, Plan


class PlanSuperseded(Refused):
    """The plan is not the one that was shown: look at it again."""

    code = "PLAN_SUPERSEDED"


class NothingLost(Refused):
    """No node waits for a person to say that it is gone: nothing was confirmed."""

    code = "NOTHING_LOST"


def promoted(plan: Plan, ids: Container[str]) -> dict[str, str]:
    """Instance → specHash that goes past its canaries because a person approved a change that waited for just that."""
    waiting = {hold.change for hold in plan.holds if hold.reason is HoldReason.CANARY_WAITS}
    return {c.instance: c.to_hash for c in plan.changes if c.id in waiting and c.id in ids}


def approve(plan: Plan, seen: Mapping[str, str]) -> frozenset[str]:
    """The change ids that may run. `seen` maps the ids a person saw to their replicas.

    A change that was seen and is gone because it is done is fine. One that differs now (same replica, other id), or a new one
    that a commit caused, is not: raises PlanSuperseded and names them.
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
        raise PlanSuperseded(
            f"by commit {plan.commit[:8]}: {'; '.join(parts)}", hint="make and read the plan again: tdie plan"
        )
    return frozenset(seen)


def must_be_lost(plan: Plan, record: Record) -> None:
    """Raise NothingLost unless the plan waits for a person to say that nodes are gone."""
    if not plan.lost_digest and not record.rewound:
        raise NothingLost("no nodes were lost together, and Consul has not lost its data", hint="see tdie status")
