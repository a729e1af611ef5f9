"""What each step means at the edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import structlog

from agent import steps
from agent.edges import Edges, NodeSettings
from agent.errors import Missing, TdieError, Waiting
from agent.keeper.protocol import HostOrder, HostRow
from agent.leases.leases import Leases
from agent.ordered import Ordered
from agent.orders import host_order, renamed
from agent.packages.protocol import Installed
from agent.port_book import PortBook
from agent.table import HostTable
from agent.wire import Assignment, ReplicaOrder, ReplicaState

log = structlog.get_logger("carry")


class Carrier:
    """Carries out one step at a time for a replica or package. Holds what steps are made from: orders, ports, packages."""

    def __init__(
        self,
        settings: NodeSettings,
        edges: Edges,
        table: HostTable,
        leases: Leases,
        packages_changed: Callable[[], None],
        problem: Callable[[str, str], None],
    ) -> None:
        self._settings = settings
        self._edges = edges
        self._table = table
        self._leases = leases
        self._packages_changed = packages_changed
        self.assignment: Assignment | None = None
        self.ordered = Ordered()
        self.orders: Mapping[str, ReplicaOrder] = {}
        self.heirs: Mapping[str, str] = {}
        self._leased: tuple[str, ...] = ()
        self.installed: Mapping[str, Installed] = {}
        self.ports = PortBook(edges.ports, edges.ledger, problem)
        self.fetching: set[str] = set()
        self.in_place_refused: set[tuple[str, str]] = set()

    def accept(self, assignment: Assignment | None, ordered: Ordered) -> None:
        """Steps follow this assignment from now on."""
        self.assignment, self.ordered = assignment, ordered
        self.orders, self.heirs = steps.orders_of(assignment)
        self._leased = tuple(name for name, order in self.orders.items() if order.policy.lease != "none")
        self.in_place_refused.clear()

    def local(self) -> steps.Local:
        """What is true here, as far as steps depend on it."""
        made = self._edges.installer.environments().keys()
        leased = {name: self._leases.standing(name) for name in self._leased}
        return steps.Local(self.assignment, self.installed, self._table.rows, made, self.in_place_refused, leased)

    def log_path(self, replica: str) -> str:
        return f"{self._settings.logs}/{replica}.log"

    async def carry(self, step: steps.Step) -> None:
        """The step is done, or a TdieError says why not."""
        try:
            match step:
                case steps.Fetch():
                    await self._fetch(step)
                case steps.Prepare():
                    await self._prepare(step)
                case steps.Collect():
                    await self._edges.installer.remove(step.digest)
                    self._packages_changed()
                case steps.Start():
                    await self.start(step.order, step.reason)
                case steps.Stop():
                    await self._stop(step)
                case steps.Reconfigure():
                    await self._reconfigure(step)
                case steps.Adjust():
                    await self._adjust(step)
                case steps.Rename():
                    await self._rename(step)
                case steps.Forget():
                    await self._forget(step)
        except TdieError:
            if not isinstance(step, steps.Fetch | steps.Prepare | steps.Collect):
                self._table.doubt(step.replica)
            raise

    async def _fetch(self, step: steps.Fetch) -> None:
        digest = step.package.package.digest
        self.fetching.add(digest)
        try:
            await self._edges.installer.install(step.package)
        finally:
            self.fetching.discard(digest)
            self._packages_changed()

    async def _prepare(self, step: steps.Prepare) -> None:
        try:
            await self._edges.installer.prepare(step.environment.split("+"))
        finally:
            self._packages_changed()

    async def start(
        self, wanted: ReplicaOrder, reason: str, *, awaiting: bool = False, correlation_id: str = ""
    ) -> None:
        """The keeper starts a host for this order, on a port of its own."""
        log.info("start", replica=wanted.replica, reason=reason)
        order = self._host_order(wanted, self._port(wanted.replica))
        order = replace(order, awaiting=awaiting, correlation_id=correlation_id or order.correlation_id)
        await self.ports.keep()
        async with self._leases.starting(wanted.replica, order.lease):
            await self._edges.keeper.start(order)
            self._assume_started(wanted.replica, order)

    def _assume_started(self, replica: str, order: HostOrder) -> None:
        row = HostRow(
            replica=replica,
            spec_hash=order.spec_hash,
            state=ReplicaState.STARTING.value,
            healthy=False,
            since=self._edges.clock.now(),
            order=order,
        )
        if not self._already(replica, order):
            self._table.assume(row)

    async def _stop(self, step: steps.Stop) -> None:
        log.info("stop", replica=step.replica, reason=step.reason)
        await self._edges.keeper.stop(step.replica)
        row = self._table.rows.get(step.replica)
        if row is not None and row.state not in (ReplicaState.STOPPED, ReplicaState.STOPPING, ReplicaState.FAILED):
            self._table.assume(
                replace(row, state=ReplicaState.STOPPING.value, healthy=False, since=self._edges.clock.now())
            )

    async def _reconfigure(self, step: steps.Reconfigure) -> None:
        log.info("reconfigure", replica=step.replica, reason=step.reason)
        row = self._row(step.replica)
        order = self._host_order(step.order, row.order.port)
        try:
            await self._edges.keeper.reconfigure(order)
        except Waiting:
            raise
        except TdieError as error:
            log.warning("the host does not take other settings, it is replaced", replica=step.replica, error=str(error))
            self.in_place_refused.add((step.replica, step.order.spec_hash))
            return
        if not self._already(step.replica, order):
            self._table.assume(replace(self._row(step.replica), spec_hash=order.spec_hash, order=order, healthy=False))

    async def _adjust(self, step: steps.Adjust) -> None:
        row = self._row(step.replica)
        policy = step.order.policy
        interval, timeout = policy.health.of_component
        order = replace(
            row.order,
            check_interval=interval,
            check_timeout=timeout,
            stop_grace=policy.stop_grace,
            restart_attempts=policy.restart.attempts,
            restart_interval=policy.restart.interval,
            restart_delay=policy.restart.delay,
            restart_mode=policy.restart.mode,
            lease=self._leases.lease_of(step.order),
        )
        async with self._leases.starting(step.replica, order.lease):
            await self._edges.keeper.adjust(order)
        if (now := self._table.rows.get(step.replica)) is not None and now.order != order:
            self._table.assume(replace(now, order=order))

    async def _rename(self, step: steps.Rename) -> None:
        log.info("rename", replica=step.replica, renamed_from=step.renamed_from)
        row = self._row(step.renamed_from)
        order = renamed(row, step.order, self.log_path(step.replica), self._leases.lease_of(step.order))
        self.ports.move(step.renamed_from, step.replica)
        await self._edges.keeper.rename(step.renamed_from, order)
        await self.ports.keep()
        self._table.drop(step.renamed_from)
        if not self._already(step.replica, order):
            self._table.assume(replace(row, replica=step.replica, order=order))

    async def _forget(self, step: steps.Forget) -> None:
        try:
            await self._edges.keeper.forget(step.replica)
        except Missing:
            log.debug("already forgotten", replica=step.replica)
        self._table.drop(step.replica)
        if self.ports.drop(step.replica):
            await self.ports.keep()

    def _already(self, replica: str, order: HostOrder) -> bool:
        """Whether the keeper's event was faster than its answer."""
        row = self._table.rows.get(replica)
        return row is not None and row.order == order and row.state not in (ReplicaState.STOPPED, ReplicaState.FAILED)

    def _row(self, replica: str) -> HostRow:
        row = self._table.rows.get(replica)
        if row is None:
            raise Missing(f"the keeper has no '{replica}' any more", code="HOST_GONE")
        return row

    def _host_order(self, order: ReplicaOrder, port: int) -> HostOrder:
        held = self.assignment
        return host_order(
            order,
            node=self._settings.node,
            port=port,
            log=self.log_path(order.replica),
            installed=self.installed,
            environments=self._edges.installer.environments(),
            data=f"{self._settings.replicas}/{order.replica}" if self._settings.replicas else "",
            correlation_id=f"{held.epoch}.{held.generation}" if held else "",
            bus=self._edges.bus.socket,
            lease=self._leases.lease_of(order),
        )

    def _port(self, replica: str) -> int:
        rows = self._table.rows
        row = rows.get(replica)
        others = {other.order.port for name, other in rows.items() if name != replica}
        return self.ports.choose(replica, row.order.port if row else 0, others)
