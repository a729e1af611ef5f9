"""Follows one agent: claims it, long-polls what it reports, and says what its answers and its silence mean."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from agent.client import NodeApi
from agent.clock import Clock, Monotonic
from agent.errors import TdieError, Waiting
from agent.expiry import FarClock
from agent.wire import Claim, Claimed, Report
from reconciler.model.observed import NodeView
from reconciler.observe import views
from reconciler.observe.watched import WATCH
from reconciler.observe.witness import Says, Witness

log = structlog.get_logger("observe")

NO_CONSUL = ("CONSUL_UNAVAILABLE", "CONSUL_DENIED")  # of a node that can neither be seen in Consul nor hold a lock
RETRY = (0.2, 5.0)  # seconds between tries to reach an agent: first, longest


class HigherEpoch(TdieError):
    """A node has been claimed with a higher epoch than ours: we must lead with a higher one, or not at all."""

    code = "STALE_LEADER"

    def __init__(self, node: str, epoch: int) -> None:
        super().__init__(f"has been claimed with epoch {epoch}", where=node)
        self.epoch = epoch


@dataclass(slots=True)
class Followed:
    """What is remembered of one node between snapshots."""

    view: NodeView
    catalog: Witness
    name: Witness  # whether it holds its name in Consul
    poll: Witness
    own: Witness  # what it says itself of its way to Consul
    far_clock: FarClock | None = None  # that of its machine, as its last report showed it
    joined: bool = False
    shown: bool = False  # it is in the catalog, and says that this shows all that it runs
    reclaim: bool = False
    claimed: int = 0  # the epoch with which we claimed it, or tried to
    following: asyncio.Task[None] | None = None
    polling: asyncio.Task[None] | None = None  # the current claim and polls

    @property
    def told(self) -> bool:
        """It has told this leadership what it runs, at least once."""
        return self.poll.says is Says.UP or self.view.assignment is not None or self.view.accepted is not None

    @property
    def unread(self) -> bool:
        """It never told anybody here what it runs, and Consul shows that (while it beats there all of it) and was not asked yet."""
        known = {Says.UP: self.view.may_run, Says.DOWN: self.view.last_shown}
        return not self.told and self.shown and known.get(self.catalog.says, frozenset()) is None

    def ask_if_missed(self, before: Witness, after: Witness) -> None:
        """Once Consul misses it, whether it still answers us is asked at once, and not when the long poll has run out."""
        missed = after.says is Says.DOWN and before.says is not Says.DOWN
        if missed and self.polling is not None and self.poll.says is Says.UP:
            self.polling.cancel()

    def read(self, replicas: frozenset[str]) -> None:
        """Consul shows these replicas there."""
        if self.catalog.says is Says.UP:
            self.view = replace(self.view, may_run=replicas)
        else:
            self.view = replace(self.view, last_shown=replicas)


class Follower:
    """Follows agents for one leadership; `changed` is told why whenever something about a node is different."""

    def __init__(self, cluster: str, epoch: int, *, api: NodeApi, clock: Clock, changed: Callable[[str], None]) -> None:
        self._cluster, self._epoch = cluster, epoch
        self._api, self._clock, self._changed = api, clock, changed

    async def follow(self, node: Followed) -> None:
        """Claim one agent, then long-poll its report; on any trouble say so and claim it again."""
        pause = RETRY[0]
        while True:
            began = self._clock.now()
            try:
                await self._poll(node)
                if self._clock.now() - began >= RETRY[1]:  # it went well for a while; else doubts come back at once
                    pause = RETRY[0]
            except HigherEpoch:
                raise
            except TdieError as error:
                self._check_epoch(node, error)
                if await self._answers(node, error):
                    self._unclaimed(node, error)
                else:
                    self._silent(node, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, RETRY[1])

    async def _poll(self, node: Followed) -> None:
        """Claim and poll until something is wrong, or somebody has doubts (`doubt` cancels only this)."""
        node.polling = asyncio.create_task(self._claim_and_poll(node), name=f"poll {node.view.name}")
        try:
            await asyncio.wait([node.polling])
        finally:
            node.polling.cancel()
        if not node.polling.cancelled():
            node.polling.result()

    async def _claim_and_poll(self, node: Followed) -> None:
        answer = await self._claim(node)
        now = self._clock.now()
        node.reclaim = False
        node.far_clock = FarClock.of(answer.report, now)
        node.view = views.claimed_view(node.view, answer, now)
        node.poll = node.poll.turn(Says.UP, now)
        node.own = _own_word(node, now)
        node.joined = True
        self._changed("report")
        report = answer.report
        while not node.reclaim:
            report = await self._api.report(node.view.api, report.index, WATCH, report.agent)
            if report.epoch > self._epoch:
                raise HigherEpoch(node.view.name, report.epoch)
            if node.reclaim or report.agent != answer.report.agent:
                return  # it restarted, or a send got lost: ask anew what is in force
            now = self._clock.now()
            node.far_clock = FarClock.of(report, now)
            after = views.reported_view(node.view, report, now)
            if after.surprising:
                return  # what we had given up on arrived after all
            if after != node.view:  # a poll that ran out brings nothing new
                node.view = after
                node.own = _own_word(node, now)
                self._changed("report")

    async def _claim(self, node: Followed) -> Claimed:
        """The node is ours. A Consul that lost its data may have given our epoch to somebody before: then it is not high enough."""
        if node.claimed != self._epoch:
            before = await self._api.report(node.view.api, 0, 0.0, "")
            self._must_be(node, before)
            if before.epoch >= self._epoch:
                raise HigherEpoch(node.view.name, before.epoch)
            node.claimed = self._epoch
        answer = await self._api.claim(node.view.api, Claim(epoch=self._epoch))
        self._must_be(node, answer.report)
        return answer

    def _must_be(self, node: Followed, report: Report) -> None:
        if (report.node, report.cluster) != (node.view.name, self._cluster):
            raise TdieError(
                f"answers as {report.cluster}/{report.node}", code="AGENT_IDENTITY_MISMATCH", where=node.view.name
            )

    async def _answers(self, node: Followed, error: TdieError) -> bool:
        """Whether the node is there for all that, and says who it is: an answer that helps nobody is no silence."""
        if error.code == Waiting.code:
            return False
        try:
            self._must_be(node, await self._api.report(node.view.api, 0, 0.0, ""))
        except TdieError:
            return False
        return True

    def _unclaimed(self, node: Followed, error: TdieError) -> None:
        detail = f"answers, but cannot be claimed: {error.code} {error.detail}"
        if node.poll.detail != detail:
            log.warning("node cannot be claimed", node=node.view.name, error=str(error))
        node.poll = node.poll.turn(Says.UNKNOWN, self._clock.now(), detail)
        self._changed("report")

    def _check_epoch(self, node: Followed, error: TdieError) -> None:
        epoch = getattr(error, "epoch", None)
        if isinstance(epoch, int) and epoch > self._epoch:
            raise HigherEpoch(node.view.name, epoch) from error

    def _silent(self, node: Followed, error: TdieError) -> None:
        node.poll = node.poll.turn(Says.DOWN, self._clock.now(), f"our poll gets no answer ({error.code})")
        self._changed("report")


def _own_word(node: Followed, now: Monotonic) -> Witness:
    """What the node's last report says of its way to Consul."""
    found = next((problem for problem in node.view.problems if problem.code in NO_CONSUL), None)
    if found is None:
        return node.own.turn(Says.UP, now)
    return node.own.turn(Says.DOWN, now, f"says itself that it has no way to Consul ({found.code})")
