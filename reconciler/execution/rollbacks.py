"""Going back to an earlier commit: which one, whether it can be, and that every later leader knows it."""

from __future__ import annotations

from dataclasses import dataclass

from agent.clock import Clock
from agent.errors import Missing, Refused
from reconciler.edges import Source
from reconciler.execution.approvals import PlanSuperseded
from reconciler.execution.history import History
from reconciler.execution.record import RecordStore
from reconciler.model.desired import DesiredState
from reconciler.model.history import earlier
from reconciler.model.rollback import Rollback, roll_back
from reconciler.source.sourced import Sourced


@dataclass(frozen=True, slots=True)
class Way:
    """From the commit in force to an earlier one; nothing has happened yet."""

    left: DesiredState
    to: DesiredState
    tip: str


class Rollbacks:
    """The rollbacks of one cluster. What is written proves that the leader key is still ours."""

    def __init__(self, record: RecordStore, history: History, source: Source, clock: Clock) -> None:
        self._record = record
        self._history = history
        self._source = source
        self._clock = clock

    async def way(self, sourced: Sourced, to: str | None = None, expected: str | None = None) -> Way:
        """The way to a named revision, or to the last good commit.

        Refused (NOTHING_EARLIER, NOT_EARLIER, ALREADY_IN_FORCE, ROLLBACK_TARGET; PlanSuperseded when another commit than the
        expected one is in force), Missing (GIT_REF_MISSING).
        """
        left = sourced.desired
        if left is None:
            raise Refused("no commit is in force yet", code="NOTHING_EARLIER")
        if expected is not None and expected != left.commit:
            raise PlanSuperseded(f"commit {left.commit[:8]} is in force now, not {expected[:8]}", hint="look again")
        back = sourced.rollback
        found = await self._load(to or self._last_good(sourced))
        if found.commit == left.commit:
            raise Refused(f"commit {left.commit[:8]} is in force already", code="ALREADY_IN_FORCE")
        if not await self._source.is_earlier(found.commit, back.reached if back is not None else left.commit):
            raise Refused(
                f"commit {found.commit[:8]} is not part of what was in force before",
                code="NOT_EARLIER",
                hint="a rollback goes back; what is new comes by a push",
            )
        return Way(left, found, sourced.commit)

    async def go(
        self, way: Way, sourced: Sourced, session: str, *, who: str, why: str, automatic: bool = False
    ) -> Rollback:
        """The commit at the end of the way is in force, from the next look at Git on."""
        now = f"{self._clock.wall():%Y-%m-%dT%H:%M:%SZ}"
        back = roll_back(
            sourced.rollback,
            way.left.commit,
            way.tip,
            way.to.commit,
            who=who,
            why=why,
            at=now,
            automatic=automatic,
        )
        await self._record.roll_back(back, way.to.subject, session)
        return back

    async def cancel(self, session: str) -> Rollback:
        """The tip of the branch may be in force again. Missing (NO_ROLLBACK) when no rollback is in force."""
        back = self._record.rollback
        if back is None:
            raise Missing("no rollback is in force", code="NO_ROLLBACK")
        await self._record.end_rollback(session)
        return back

    def earlier(self, sourced: Sourced) -> tuple[str, ...]:
        """Commits to go back to from what is in force, the best first."""
        left, back = sourced.desired, sourced.rollback
        skipped = back.quarantined if back is not None else frozenset()
        return earlier(self._history.entries, left.commit if left is not None else "", skipped)

    def _last_good(self, sourced: Sourced) -> str:
        known = self.earlier(sourced)
        if not known:
            raise Refused(
                "no earlier commit is remembered that was in force and not rolled back",
                code="NOTHING_EARLIER",
                hint="name one: tdie rollback --to REV",
            )
        return known[0]

    async def _load(self, revision: str) -> DesiredState:
        found = await self._source.load(revision)
        if found.desired is None:
            first = found.problems[0] if found.problems else "nothing can be read of it"
            raise Refused(
                f"commit {found.commit[:8]} is not valid ({len(found.problems)} problem(s), first {first})",
                code="ROLLBACK_TARGET",
            )
        return found.desired
