"""The history of a cluster in Consul: one small value an entry, written only when something happened."""

from __future__ import annotations

import json
from collections.abc import Iterator

import structlog

from agent import keys
from agent.clock import Clock
from agent.consul.protocol import Consul, TxnOp
from reconciler.execution import proven
from reconciler.model.history import Entries, Entry, Seen, bring_up
from reconciler.model.plan import HoldReason, Plan
from reconciler.source.sourced import Sourced

log = structlog.get_logger("history")


class History:
    """What the leader knows of it, and brings up to date."""

    def __init__(self, cluster: str, *, consul: Consul, clock: Clock) -> None:
        self._cluster = cluster
        self._consul = consul
        self._clock = clock
        self._last: tuple[Sourced, Plan | None] | None = None
        self.entries: Entries = ()
        self._written: Entries = ()  # as Consul has them

    async def load(self) -> Entries:
        """The entries as they are in Consul, the oldest first. What nobody can read is left out, and left there."""
        found = []
        for pair in await self._consul.get_all(self._key("")):
            try:
                found.append(Entry.read(json.loads(pair.value)))
            except (ValueError, TypeError, KeyError):
                log.warning("an entry of the history makes no sense", key=pair.key)
        return tuple(sorted(found, key=lambda entry: entry.number))

    async def take_over(self) -> None:
        """A new leader goes on where the last one was."""
        found = await self.load()
        self._last, self._written = None, found
        if found or not self.entries:  # else Consul has lost its data: what is known here is written again
            self.entries = found

    async def note(self, sourced: Sourced, plan: Plan | None, session: str) -> None:
        """What this cycle saw is in the history; no write when it is already."""
        if self._last is not None and self._last[0] is sourced and self._last[1] is plan:
            return
        desired = sourced.desired
        keep = desired.cluster.retain_history if desired is not None else len(self.entries) + 1
        after = bring_up(self.entries, self._seen(sourced, plan), keep)
        await proven.write(self._consul, proven.leads(self._cluster, session), list(self._ops(after)))
        self._last, self.entries, self._written = (sourced, plan), after, after

    def _seen(self, sourced: Sourced, plan: Plan | None) -> Seen:
        desired, at = sourced.desired, f"{self._clock.wall():%Y-%m-%dT%H:%M:%SZ}"
        rejected = sourced.commit if sourced.problems else ""
        count = len(sourced.problems)
        why = f"{count} problem{'' if count == 1 else 's'}, first {sourced.problems[0]}" if rejected else ""
        if desired is None:
            return Seen(at, rejected=rejected, rejected_for=why)
        current = plan if plan is not None and plan.commit == desired.commit else None
        return Seen(
            at,
            commit=desired.commit,
            subject=desired.subject,
            author=desired.author,
            rollback=sourced.rollback,
            rejected=rejected,
            rejected_for=why,
            healthy=current is not None and current.healthy,
            halted=_halted(current),
        )

    def _ops(self, after: Entries) -> Iterator[TxnOp]:
        before = {entry.number: entry for entry in self._written}
        for entry in after:
            if before.pop(entry.number, None) != entry:
                data = json.dumps(entry.text(), ensure_ascii=False).encode()
                yield TxnOp("set", self._key(f"{entry.number:08}"), data)
        for number in before:
            yield TxnOp("delete", self._key(f"{number:08}"))

    def _key(self, name: str) -> str:
        return keys.record(self._cluster, "history", name)


def _halted(plan: Plan | None) -> str:
    """Why a rollout of this plan has stopped; empty while none has."""
    for hold in plan.holds if plan is not None else ():
        if hold.reason is HoldReason.ROLLOUT_HALTED:
            return f"{hold.instance}: {hold.detail}"
    return ""
