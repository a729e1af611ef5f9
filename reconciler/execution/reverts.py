"""`update.autoRevert`: a rollout that failed takes the commit back, to the last one in which its instances ran well."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from agent.errors import TdieError
from reconciler.execution.rollbacks import Rollbacks, Way
from reconciler.model.desired import DesiredState
from reconciler.model.plan import Plan
from reconciler.model.rollback import Rollback
from reconciler.source.sourced import Sourced

log = structlog.get_logger("reverts")


class Reverts:
    """Goes back at most once for one commit in force; a rollback that does not run well itself is left to people."""

    def __init__(self, rollbacks: Rollbacks) -> None:
        self._rollbacks = rollbacks
        self._tried: tuple[str, frozenset[str]] | None = None

    async def look(self, plan: Plan, sourced: Sourced, stable: Mapping[str, str], session: str) -> str:
        """What happened because of failed rollouts, for people; empty when nothing did. A rollback is obeyed at the next look."""
        desired = sourced.desired
        if not plan.failed or desired is None or sourced.rollback is not None or plan.commit != desired.commit:
            return ""
        key = (desired.commit, frozenset(plan.failed))
        if key == self._tried:
            return ""
        names = ", ".join(sorted(plan.failed))
        why = "; ".join(f"{name}: {detail}" for name, detail in sorted(plan.failed.items()))
        way = await self._way(sourced, desired, plan.failed, stable)
        if way is None:
            said = f"the rollout of {names} failed and no earlier commit is remembered in which it ran well"
        else:
            back = await self._go(way, sourced, session, names, why)
            said = f"commit {back.to[:8]} instead of {back.left[:8]}: the rollout of {names} failed"
        self._tried = key
        return said

    async def _go(self, way: Way, sourced: Sourced, session: str, names: str, why: str) -> Rollback:
        log.warning("the commit is taken back", commit=way.left.commit, to=way.to.commit, why=why)
        who = f"update.autoRevert of {names}"
        return await self._rollbacks.go(way, sourced, session, who=who[:100], why=why[:300], automatic=True)

    async def _way(
        self, sourced: Sourced, desired: DesiredState, failed: Mapping[str, str], stable: Mapping[str, str]
    ) -> Way | None:
        for commit in self._rollbacks.earlier(sourced):
            try:
                way = await self._rollbacks.way(sourced, commit)
            except TdieError as error:
                if error.status == 503:
                    raise  # nothing is known now: look again later
                log.warning("this commit cannot be gone back to", commit=commit, error=str(error))
                continue
            if all(_ran_well(way.to, desired, name, stable.get(name)) for name in failed):
                return way
        return None


def _ran_well(to: DesiredState, now: DesiredState, name: str, stable: str | None) -> bool:
    """Whether an instance is in this commit as it ran well before, or not at all."""
    there = to.instances.get(name)
    if there is None:
        return True
    return there.spec_hash == stable if stable is not None else there.spec_hash != now.instances[name].spec_hash
