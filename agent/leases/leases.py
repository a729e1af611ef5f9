"""All leases of one node: who needs one, who has one, and what the rest of the agent may know of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Literal

import structlog

from agent import keys
from agent.edges import Edges, NodeSettings
from agent.errors import Invalid, Refused, TdieError, Waiting
from agent.keeper.protocol import HostRow, Lease
from agent.leases.failsafe import PROMISED, REFUSED, Seen, listed
from agent.leases.peers import Ack, Ask
from agent.leases.promises import Promises
from agent.leases.session import Session
from agent.leases.tender import Tender
from agent.leases.values import UNAVAILABLE, WAITING_LEASE, read_remembered
from agent.table import HostTable
from agent.wire import LeaseFigures, LeaseStatus, ReplicaOrder, ReplicaState

log = structlog.get_logger("leases")

FENCED = "FENCED"
LOOK_AROUND = 12  # renewals after which we look whether our session holds what nothing here needs
Standing = Literal["", "held", "waiting", "elsewhere"]


class Leases:
    """Tends the lease of every replica that is ordered under one, or runs under one."""

    def __init__(
        self,
        settings: NodeSettings,
        edges: Edges,
        table: HostTable,
        *,
        orders: Callable[[], Mapping[str, ReplicaOrder]],
        figures: Callable[[], LeaseFigures],
        epoch: Callable[[], int],
        changed: Callable[[Iterable[str]], None],
        problem: Callable[[str, str], None],
    ) -> None:
        self.cluster, self.node = settings.cluster, settings.node
        self.consul, self.keeper, self.clock, self.uniform = edges.consul, edges.keeper, edges.clock, edges.uniform
        self.peers, self.promises = edges.peers, Promises(edges.ledger, edges.clock, edges.boot_id)
        self._table, self._orders, self._changed, self._problem = table, orders, changed, problem
        self.epoch = epoch
        self.session = Session(
            settings.cluster,
            settings.node,
            consul=edges.consul,
            keeper=edges.keeper,
            clock=edges.clock,
            ledger=edges.ledger,
            boot_id=edges.boot_id,
            figures=figures,
            moved=self._session_moved,
            problem=problem,
        )
        self._tenders: dict[str, Tender] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._left_over_known = True
        self._looking = False
        self._session_told = (0, False)
        self._starting: set[str] = set()
        self._listed: dict[str, Seen] = {}
        self._passing: Mapping[str, str] = {}
        self._listed_at = (-1, -1)
        self._api = settings.api

    # ------------------------------------------------------------------------------------------- for the agent

    def remember(self, text: str, failsafe: str) -> None:
        """The ledger's word on the lease session of this agent's last life, and on its agreements with other nodes."""
        self.promises.remember(failsafe)
        now = self.clock.now()
        for kept in self.promises.book.kept.values():
            self._listed.update({name: Seen(api, now) for name, api in kept.members.items()})
        held = read_remembered(text)
        self.session.remember(held)
        self._left_over_known = held is None

    async def run(self) -> None:
        """Tend all leases until cancelled; locks stay held then, for the agent that comes next."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._need()
            tasks.create_task(self.session.run(), name="lease session")
            self.look(self._orders().keys() | self._table.rows.keys())
            try:
                await asyncio.Event().wait()  # for ever
            finally:
                self._tasks = None  # an assignment may still come: the agent's next life begins with it

    def look(self, replicas: Iterable[str]) -> None:
        """These replicas are ordered otherwise, or their hosts changed."""
        for replica in sorted(replicas):  # in the same order in each run of a simulation
            if (tender := self._tenders.get(replica)) is not None:
                tender.moved.set()
            elif self._tasks is not None and (self.wanted(replica) or self.runs_leased(replica)):
                self._begin(Tender(replica, self), replica)

    def standing(self, replica: str) -> Standing:
        """Whether a host of the replica may start now, as far as leases go; empty when it needs none."""
        if not self.wanted(replica):
            return ""
        tender = self._tenders.get(replica)
        if tender is None:
            return "waiting"
        if tender.token is not None:
            return "held"
        status = tender.status()
        return "elsewhere" if status.state == "waiting" and status.code == WAITING_LEASE else "waiting"

    def lease_of(self, order: ReplicaOrder) -> Lease | None:
        """What a host of this order carries, None if it needs no lease. Raises Waiting (LEASE_NOT_HELD) when it may not run."""
        if order.policy.lease == "none":
            return None
        tender = self._tenders.get(order.replica)
        if tender is None or (token := tender.token) is None:
            raise Waiting(f"the lease of {order.replica} is not held", code="LEASE_NOT_HELD")
        figures = self.session.figures
        return Lease(token.epoch, token.index, figures.fence_grace, figures.kill_slack)

    @asynccontextmanager
    async def starting(self, replica: str, lease: Lease | None) -> AsyncIterator[None]:
        """While the keeper is being asked to run a leased host, its row proves nothing."""
        if lease is None:
            yield
            return
        self._starting.add(replica)
        try:
            await self.keeper.extend(self.session.deadline)  # it may be another keeper since the last renewal
            yield
        finally:
            self._starting.discard(replica)
            self.look((replica,))

    def status(self, replica: str) -> LeaseStatus | None:
        """For the report; None when the replica has nothing to do with leases."""
        tender = self._tenders.get(replica)
        if tender is not None:
            return tender.status()
        return LeaseStatus(state="waiting", code=UNAVAILABLE) if self.wanted(replica) else None

    async def acknowledge(self, ask: Ask) -> Ack:
        """This node does not start the replica for so long: on disk now. Raises Refused when it runs it or is getting it, and
        Waiting while it may have got it, what runs here has to end as its lease is over, or another node has its word."""
        if (ask.cluster, ask.node) != (self.cluster, self.node):
            raise Invalid(f"this is node {self.node} of {self.cluster}, not {ask.node}", code="WRONG_NODE")
        if not self._table.known:
            raise Waiting("the keeper has not been read yet", code="NOT_READY")
        tender = self._tenders.get(ask.replica)
        busy, lost = (tender.busy, tender.lost) if tender is not None else (False, "")
        if busy or not (lost or self.down(ask.replica)):
            raise Refused(f"{ask.replica} runs on {self.node}, or is about to", code=REFUSED)
        if not self.down(ask.replica):  # as on a machine that slept: what ran here has no say in who has the lease now
            raise Waiting(f"{ask.replica} is being ended on {self.node} ({lost})", code="NOT_READY")
        if tender is not None and tender.trying:
            raise Waiting(f"Consul is being asked for the lease of {ask.replica}", code="NOT_READY")
        if (other := self.promises.book.given_to(ask.replica, self.clock.now())) not in ("", ask.holder):
            raise Waiting(f"{self.node} has promised {ask.replica} to {other}", code=PROMISED)
        await self.promises.give(ask.replica, ask.seconds, ask.holder)
        return Ack(node=self.node, replica=ask.replica)

    async def give_back(self, but: Collection[str]) -> None:
        """Every lease is free at once, but those of hosts that are still up: for an agent that has stopped all it could."""
        for replica, tender in self._tenders.items():
            if replica in but:
                continue
            try:
                await tender.release()
            except (TdieError, TimeoutError) as error:
                log.warning("a lease was not given back, it ends by itself", replica=replica, error=str(error))
        if self.session.remembered and not but:
            await self.session.leave()

    # ------------------------------------------------------------------------------------------- for tenders

    def known(self) -> bool:
        return self._table.known

    def row(self, replica: str) -> HostRow | None:
        return self._table.rows.get(replica)

    def down(self, replica: str) -> bool:
        row = self.row(replica)
        if not self._table.known or replica in self._starting or self._table.doubtful(replica):
            return False
        return row is None or (row.state in (ReplicaState.STOPPED, ReplicaState.FAILED) and row.pid is None)

    def runs_leased(self, replica: str) -> bool:
        row = self.row(replica)
        if replica in self._starting or (self._table.doubtful(replica) and self.wanted(replica)):
            return True
        return row is not None and row.order.lease is not None and not self.down(replica)

    def wanted(self, replica: str) -> bool:
        order = self._orders().get(replica)
        return order is not None and order.policy.lease != "none"

    def failsafe(self, replica: str) -> bool:
        order = self._orders().get(replica)
        return order is not None and order.policy.lease == "failsafe"

    def refused(self) -> int:
        return sum(tender.refused for tender in self._tenders.values())

    async def members(self) -> Mapping[str, str]:
        """Asked once a renewal. A node that Consul has just lost sight of still counts: it may be cut off, and alive."""
        now = (self.session.generation, self.session.renewals)
        if self._listed_at != now:
            async with asyncio.timeout(self.session.figures.http_timeout):
                _, agents = await self.consul.watch_service(keys.AGENT_SERVICE, self.cluster, 0, 0.0)
            named = {agent.meta.get(keys.NODE_META, ""): agent for agent in agents}
            named.pop("", None)
            found = {name: agent.meta.get(keys.API_META, "") for name, agent in named.items()}
            self._listed = listed(self._listed, {**found, self.node: self._api}, self.clock.now())
            self._passing = {name: found[name] for name, agent in sorted(named.items()) if not agent.critical}
            self._listed_at = now
        return {name: seen.api for name, seen in sorted(self._listed.items())}

    async def passing(self) -> Mapping[str, str]:
        """Asked as often: what Consul itself shows as well now."""
        await self.members()
        return self._passing

    def changed(self, replica: str) -> None:
        lost = {name: tender.lost for name, tender in sorted(self._tenders.items()) if tender.lost}
        pause = f", this machine or its agent did not run for {self.session.pause:.0f} s" if self._paused() else ""
        self._problem(FENCED, ", ".join(f"{name} {code}" for name, code in lost.items()) + pause if lost else "")
        self._changed((replica,))

    # ------------------------------------------------------------------------------------------- inside

    def _paused(self) -> bool:
        return self.session.pause >= self.session.figures.ttl

    def _begin(self, tender: Tender, replica: str) -> None:
        assert self._tasks is not None
        self._tenders[replica] = tender
        self._need()
        self._tasks.create_task(self._tend(tender, replica), name=f"lease {replica}")

    async def _tend(self, tender: Tender, replica: str) -> None:
        await tender.run()
        del self._tenders[replica]
        self._need()
        self.changed(replica)
        self.look((replica,))  # it may be wanted again since

    def _need(self) -> None:
        self.session.need(bool(self._tenders) or not self._left_over_known)

    def _session_moved(self) -> None:
        known = self._left_over_known and self.session.renewals % LOOK_AROUND
        if not (known or self._looking) and self._tasks is not None:
            self._looking = True
            self._tasks.create_task(self._find_left_over(), name="find leases of an earlier life")
        for tender in self._tenders.values():
            tender.moved.set()
        standing = (self.session.lapses, self.session.usable)
        if self._session_told != standing:  # what is held may be good for nothing now, or good again
            self._session_told = standing
            for replica in list(self._tenders):
                self.changed(replica)

    async def _find_left_over(self) -> None:
        """What our session holds and nothing here needs any more is given back.

        Such locks are left by an earlier life of this agent, or come back with an old snapshot of Consul.
        """
        prefix, session, said = keys.leases(self.cluster), self.session.id, ""
        while session and session == self.session.id:
            try:
                found = await self.consul.get_all(prefix)
            except TdieError as error:
                if said != (said := str(error)):
                    log.warning("leases of an earlier life are not known yet", error=said)
                await asyncio.sleep(1.0)
                continue
            for entry in found:
                replica = entry.key.removeprefix(prefix)
                if entry.session == session and replica not in self._tenders:
                    self._begin(Tender(replica, self, left_over=True), replica)
            break
        self._left_over_known, self._looking = True, False
        self._need()
