"""Targets of a plan → numbered assignments at the agents, under node locks, fenced by the term."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agent.client import ANSWER, NodeApi
from agent.clock import Clock
from agent.errors import Late, TdieError, Waiting
from agent.wire import Assignment, PackageOrder
from reconciler.execution.leadership import Term
from reconciler.execution.locks import NodeLocks
from reconciler.model.observed import NodeView, ObservedState, Presence
from reconciler.model.plan import NodeTarget, Plan
from reconciler.observe.fleet import Fleet
from reconciler.observe.follower import HigherEpoch

AT_ONCE = 64  # assignments in flight
PEERS = 2  # agents named as further sources of a package


@dataclass(frozen=True, slots=True)
class Sent:
    """How sending one assignment ended; an empty `error` means the agent has it on disk."""

    node: str
    epoch: int
    generation: int
    error: str = ""
    unknown: bool = False  # no answer came: it may have arrived
    late: bool = False  # … not within the time that it was given
    higher_epoch: int = 0  # the node has heard of this later leadership


class Publisher:
    """Carries a plan out. It makes no choices: what is sent was decided by the planner."""

    def __init__(
        self,
        cluster: str,
        *,
        nodes: NodeApi,
        fleet: Fleet,
        clock: Clock,
        term: Term,
        locks: NodeLocks,
        package_url: Callable[[str], str],
    ) -> None:
        self._cluster = cluster
        self._api = nodes
        self._fleet = fleet
        self._clock = clock
        self._term = term
        self._locks = locks
        self._package_url = package_url
        self._places = asyncio.Semaphore(AT_ONCE)

    async def publish(self, plan: Plan, observed: ObservedState) -> tuple[Sent, ...]:
        """Every target has been sent once, but those of which others did not take over first what they give up.

        Raises HigherEpoch and LeadershipLost; other trouble is in the results.
        """
        await self._free_settled(plan, observed)
        if not plan.targets:
            return ()
        self._term.must_hold(self._clock.now())
        locked = await self._locks.take(plan.targets, f"commit {plan.commit[:8]}")
        targets = [target for name, target in plan.targets.items() if name in locked]
        holders = _holders(plan, observed)
        first = await self._send_all([t for t in targets if not t.after], plan, observed, holders)
        accepted = {sent.node for sent in first if not sent.error}
        return first + await self._send_all(
            [t for t in targets if t.after and accepted.issuperset(t.after)], plan, observed, holders
        )

    async def _send_all(
        self, targets: list[NodeTarget], plan: Plan, observed: ObservedState, holders: Mapping[str, tuple[str, ...]]
    ) -> tuple[Sent, ...]:
        sends = (self._send(target, observed.nodes[target.node], plan.commit, holders) for target in targets)
        results = tuple(await asyncio.gather(*sends))
        for sent in results:
            if sent.higher_epoch:
                raise HigherEpoch(sent.node, sent.higher_epoch)
        return results

    async def _free_settled(self, plan: Plan, observed: ObservedState) -> None:
        done = [
            name
            for name in self._locks.held
            if name not in plan.targets and (name not in observed.nodes or _settled(observed.nodes[name]))
        ]
        if done:
            await self._locks.free(done)

    async def _send(
        self, target: NodeTarget, view: NodeView, commit: str, holders: Mapping[str, tuple[str, ...]]
    ) -> Sent:
        packages = tuple(
            PackageOrder(
                package=p.package, sources=(self._package_url(p.package.digest), *holders.get(p.package.digest, ()))
            )
            for p in target.packages
        )
        assignment = Assignment(
            cluster=self._cluster,
            node=target.node,
            epoch=self._term.epoch,
            generation=view.next_generation,
            commit=commit,
            packages=packages,
            replicas=target.replicas,
            policy=target.policy,
            digest=target.digest,
        )
        async with self._places:
            self._term.must_hold(self._clock.now())
            try:
                expiry = self._fleet.expiry(target.node, ANSWER)  # we wait no longer, and decide anew then
                self._fleet.sent(target.node, assignment)
                await self._api.assign(view.api, assignment, expiry)
            except TdieError as error:
                self._fleet.doubt(target.node, str(error))  # it may have arrived: ask before sending anything else
                return self._failed(assignment, error)
        return Sent(target.node, assignment.epoch, assignment.generation)

    def _failed(self, assignment: Assignment, error: TdieError) -> Sent:
        epoch = getattr(error, "epoch", None)
        higher = epoch if isinstance(epoch, int) and epoch > assignment.epoch else 0
        return Sent(
            assignment.node,
            assignment.epoch,
            assignment.generation,
            error=str(error),
            unknown=isinstance(error, Waiting),
            late=isinstance(error, Late),
            higher_epoch=higher,
        )


def _holders(plan: Plan, observed: ObservedState) -> Mapping[str, tuple[str, ...]]:
    """Digest of a package to be fetched → URLs of agents that have it, for when the controller is slow or gone."""
    wanted = {
        package.package.digest
        for target in plan.targets.values()
        for package in target.packages
        if package.package.digest not in observed.nodes[target.node].installed
    }
    urls: dict[str, list[str]] = {digest: [] for digest in wanted}
    for view in observed.nodes.values() if wanted else ():
        if view.presence is Presence.ALIVE and view.api:
            for digest in wanted & view.installed:
                if len(urls[digest]) < PEERS:
                    urls[digest].append(f"{view.api}/api/node/packages/{digest}")
    return {digest: tuple(found) for digest, found in urls.items()}


def _settled(view: NodeView) -> bool:
    """Whether the node reports what it was last sent, replica by replica."""
    if view.assignment is None or view.accepted is None or view.accepted.digest != view.assignment.digest:
        return view.assignment is None
    wanted = {order.replica: order.spec_hash for order in view.assignment.replicas}
    return wanted == {name: row.spec_hash for name, row in view.replicas.items()}
