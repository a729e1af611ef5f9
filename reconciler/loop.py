"""One cycle as a straight line: Git and fleet → plan → assignments. How it ended says when to look next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import structlog

from agent.clock import Monotonic
from agent.consul.errors import UNAVAILABLE
from agent.errors import TdieError
from reconciler.board import Board
from reconciler.edges import Edges
from reconciler.execution.backup import Restored, check, collect, restore
from reconciler.execution.history import History
from reconciler.execution.leadership import Leadership, LeadershipLost, Term
from reconciler.execution.locks import NodeLocks
from reconciler.execution.node_wishes import NodeWishes
from reconciler.execution.publish import Publisher, Sent
from reconciler.execution.record import RecordStore
from reconciler.execution.reverts import Reverts
from reconciler.execution.rollbacks import Rollbacks
from reconciler.execution.topics import Topics
from reconciler.model.observed import Record
from reconciler.model.plan import Plan
from reconciler.observe.fleet import Fleet
from reconciler.observe.follower import HigherEpoch
from reconciler.observe.hours import Hours
from reconciler.planning import Memo, plan
from reconciler.source.sourced import Sourced
from reconciler.wakeups import Wakeups

log = structlog.get_logger("loop")

LOOK_AT_GIT = frozenset({"git", "person"})  # a lapsed hold needs no fetch; the source's own interval says "git"
LONGEST = 50.0  # seconds between looks when nothing wakes the loop
AGAIN = 1.0  # … after a cycle that did not end well
CANDIDATE = (0.5, 4.0)  # … between tries to stand by or lead: first, longest
SHORTEST = 0.005  # … and never less, so that a moment that has just come cannot spin the loop


@dataclass(frozen=True, slots=True)
class Settled:
    """How a cycle ended. `look_again_at` is when time alone may change the outcome."""

    plan: Plan | None
    sent: tuple[Sent, ...] = ()
    look_again_at: Monotonic | None = None


class Loop:
    """One controller: stands by, leads, and while it leads keeps the fleet at the commit in force.

    `once_healthy` is called when everything runs well for the first time.
    """

    def __init__(
        self,
        cluster: str,
        edges: Edges,
        leadership: Leadership,
        board: Board,
        wakeups: Wakeups,
        *,
        agent_ttl: float = 15.0,
        once_healthy: Callable[[], None] | None = None,
    ) -> None:
        self._cluster = cluster
        self._edges = edges
        self._leadership = leadership
        self._wakeups = wakeups
        self.board = board
        self.record = RecordStore(cluster, consul=edges.consul, clock=edges.clock)
        self.history = History(cluster, consul=edges.consul, clock=edges.clock)
        self.rollbacks = Rollbacks(self.record, self.history, edges.source, edges.clock)
        self._reverts = Reverts(self.rollbacks)
        self.node_wishes = NodeWishes(cluster, consul=edges.consul, clock=edges.clock)
        self.fleet = Fleet(
            cluster,
            consul=edges.consul,
            nodes=edges.nodes,
            clock=edges.clock,
            wake=wakeups.wake,
            beat_ttl=agent_ttl,
        )
        self._hours = Hours(edges.clock)
        self._memo = Memo()
        self._settled = Settled(None)
        self._record = Record()
        self.planned_with = Record()  # what the last plan was made with
        self._record_stale = True
        self._once_healthy = once_healthy

    async def run(self) -> None:
        """Stand by and lead, again and again, until cancelled. The longer Consul is away, the less it is asked."""
        pause = CANDIDATE[0]
        while True:
            began = self._edges.clock.now()
            try:
                async with self._leadership.term() as term:
                    await self._lead(term)
            except* HigherEpoch as group:
                log.warning("a node knows a later leadership", error=str(group.exceptions[0]))
            except* TdieError as group:
                error = _first(group)
                self.board.trouble(error)
                if isinstance(error, TdieError) and error.code == UNAVAILABLE:
                    self.fleet.consul_was_away()
            self.board.follows()
            if self._edges.clock.now() - began > CANDIDATE[1]:
                pause = CANDIDATE[0]  # it stood by or led for a while
            await asyncio.sleep(pause)
            pause = min(2 * pause, CANDIDATE[1])

    # ------------------------------------------------------------------------------------------- one leadership

    async def _lead(self, term: Term) -> None:
        """Lead until the term ends. A node that knows a higher epoch makes us take a higher one and claim anew."""
        commit = await self.record.in_force()
        await self.history.take_over()
        if commit:
            await self._edges.source.start_from(commit)
        while True:
            try:
                await self._lead_epoch(term, commit)
            except* HigherEpoch as group:
                found = max(_leaves(group), key=lambda error: error.epoch)
                self.record.distrust()
                await self._leadership.raise_epoch(term, found.epoch)

    async def _lead_epoch(self, term: Term, commit: str | None) -> None:
        locks = NodeLocks(
            self._cluster,
            term.session,
            f"controller {self._leadership.name}",
            consul=self._edges.consul,
            clock=self._edges.clock,
        )
        publisher = Publisher(
            self._cluster,
            nodes=self._edges.nodes,
            fleet=self.fleet,
            clock=self._edges.clock,
            term=term,
            locks=locks,
            package_url=self._edges.package_url,
        )
        self._settled, self._record_stale = Settled(None), True
        topics = Topics(self._cluster, term.session, consul=self._edges.consul)
        self.board.leads(term, commit)
        sourced = await self._look()  # before `changed`, which then knows what to compare with
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(
                self.fleet.follow(term.epoch, term.session, fresh_consul=term.fresh_consul), name="follow the fleet"
            )
            tasks.create_task(self._watch_source(), name="watch Git")
            tasks.create_task(self._cycles(sourced, publisher, topics, term), name="cycles")
            tasks.create_task(_until_over(term), name="until the term is over")
            if term.fresh_consul:
                tasks.create_task(self._wait_for_forgotten(term), name="wait for nodes that Consul forgot")

    async def _wait_for_forgotten(self, term: Term) -> None:
        await self.fleet.patience_over()
        while True:
            try:
                await self._leadership.nothing_forgotten(term)
                return
            except TdieError as error:
                log.warning("not written down that Consul's data is whole again", error=str(error))
                await asyncio.sleep(AGAIN)

    async def _watch_source(self) -> None:
        while True:
            await self._edges.source.changed()
            self._wakeups.wake("git")

    async def _cycles(self, sourced: Sourced, publisher: Publisher, topics: Topics, term: Term) -> None:
        while True:
            try:
                if self.record.unsure:
                    await self.record.in_force()
                    sourced = await self._look()
                settled = await self.cycle(sourced, publisher, topics, term)
                await self._remember(sourced, settled.plan, term.session)
                wait = self._until(settled)
            except (LeadershipLost, HigherEpoch):
                raise
            except TdieError as error:
                self.board.trouble(error)
                wait = AGAIN
            reasons = await self._wakeups.wait(wait)
            if reasons & LOOK_AT_GIT:
                sourced = await self._look()

    async def _remember(self, sourced: Sourced, plan: Plan | None, session: str) -> None:
        """What this cycle found out is known to every later leader; a failed rollout may take the commit back."""
        await self.history.note(sourced, plan, session)
        desired = sourced.desired
        if plan is None or desired is None:
            return
        if self._record.rewound and self.fleet.all_told(desired.cluster.nodes):
            await self.record.all_is_known(session)
            self._record_stale = True
            self._wakeups.wake("rollout")
        gone = self._record.stable.keys() - desired.instances.keys() if plan.healthy else frozenset()
        if plan.stable or gone:
            await self.record.put_rollouts(plan.stable, gone, session)
            self._record_stale = True
            self._wakeups.wake("rollout")
        said = await self._reverts.look(plan, sourced, self._record.stable, session)
        if said:
            self.board.reverted(said)
            self._wakeups.wake("person")

    async def _look(self) -> Sourced:
        return await self._edges.source.look(rollback=self.record.rollback)

    async def cycle(self, sourced: Sourced, publisher: Publisher, topics: Topics, term: Term) -> Settled:
        """Look once at what Git and the fleet say, and send what follows from both."""
        self.board.sourced(sourced)
        desired = sourced.desired
        if desired is None:
            return Settled(None)
        if self._record_stale:
            self._record = await self.record.load()
            self._record_stale = False
            self.board.suspended = self._record.suspended
        record = self.planned_with = replace(
            self._record,
            window=self._hours.now(desired.cluster.sync.windows),
            rolled_back=sourced.rollback is not None,
        )
        observed, presence_changes = self.fleet.snapshot(desired.cluster.nodes, desired.cluster.failover.lost_after)
        decided = plan(desired, observed, record, self._edges.clock.now(), self._memo)
        if decided is self._settled.plan:  # nothing it was made of has changed
            self._settled = replace(self._settled, look_again_at=_earliest(decided.look_again_at, presence_changes))
            return self._settled
        self.board.found(observed, decided)
        await topics.publish(desired.instances)  # who subscribes is known before anybody publishes
        sent = await publisher.publish(decided, observed)
        await self.record.put_in_force(desired.commit, desired.subject, term.session)
        again = _earliest(decided.look_again_at, presence_changes)
        if len(sent) < len(decided.targets):  # somebody held a lock, perhaps for a moment only: send the rest again
            self._settled = Settled(None, sent, _earliest(again, Monotonic(self._edges.clock.now() + AGAIN)))
        else:
            self._settled = Settled(decided, sent, again)
        self.board.planned(desired, observed, decided, sent)
        if decided.healthy and self._once_healthy is not None:
            self._once_healthy()
            self._once_healthy = None
        return self._settled

    def _until(self, settled: Settled) -> float:
        """Seconds until the next look when nothing wakes the loop."""
        if settled.look_again_at is None:
            return LONGEST
        return min(LONGEST, max(SHORTEST, settled.look_again_at - self._edges.clock.now()))

    # ------------------------------------------------------------------------------------------- for people

    @contextmanager
    def changing_record(self) -> Iterator[RecordStore]:
        """What a person changes in the record within is read by the next cycle, also when no answer said that it was changed."""
        try:
            yield self.record
        finally:
            self._record_stale = True
            self._wakeups.wake("person")

    async def backup(self) -> dict[str, Any]:
        """What this cluster keeps in Consul, as one document."""
        return await collect(self._edges.consul, self._cluster, self._edges.clock)

    async def restore(self, doc: Any, term: Term) -> Restored:
        """The record is as in this backup; the term is over then, also when no answer said that it was written, so that whoever
        leads next reads all of it anew."""
        checked = check(doc, self._cluster)
        try:
            return await restore(self._edges.consul, self._cluster, checked, term.session)
        finally:
            term.why = "a backup was restored"
            term.ended.set()

    def look(self) -> None:
        """Look at Git and fleet now."""
        self._wakeups.wake("person")


async def _until_over(term: Term) -> None:
    await term.ended.wait()
    raise LeadershipLost(term.why)


def _earliest(*moments: Monotonic | None) -> Monotonic | None:
    return min((moment for moment in moments if moment is not None), default=None)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first real error inside nested groups."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _leaves(group: BaseExceptionGroup[HigherEpoch]) -> list[HigherEpoch]:
    leaves: list[HigherEpoch] = []
    for error in group.exceptions:
        leaves.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return leaves
