"""Hosts that people start at this node: not owned by Git, named apart, and left alone unless the cluster prunes everything."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from agent.carry import Carrier
from agent.edges import Edges
from agent.errors import Invalid, Missing, Refused, Waiting
from agent.keeper.protocol import BY_HAND, HostRow
from agent.packages.dependencies import environment_of
from agent.steps import is_by_hand, needed
from agent.table import HostTable
from agent.wire import ReplicaOrder, ReplicaSpec, ReplicaState

_LANDED = 10.0  # seconds until a process has an id
_OVER = (ReplicaState.FAILED, ReplicaState.BACKOFF, ReplicaState.STOPPED)


class ByHand:
    """Starts hosts that nothing in Git names; they end like any other."""

    def __init__(self, edges: Edges, carrier: Carrier, table: HostTable, env: Mapping[str, str]) -> None:
        """`env` is what every host started by hand has in its environment."""
        self._edges, self._carrier, self._table, self._env = edges, carrier, table, env
        self._given: set[str] = (
            set()
        )  # names of starts under way, and of those whose end nobody knows: never given twice
        self._landing: dict[str, asyncio.Future[HostRow]] = {}

    async def start(self, spec: ReplicaSpec, *, awaiting: bool, correlation_id: str) -> HostRow:
        """The row of a new host, with its process id unless it failed at once.

        `awaiting`: it loads nothing until it is configured through its own API. Refused (PRUNES_ALL) where it would not stay.
        """
        self.check_allowed()
        if not self._table.known:
            raise Waiting("the keeper has not been read yet", code="NOT_READY")
        replica = self._name(spec.package.name)
        order = ReplicaOrder(
            replica=replica,
            instance=BY_HAND,
            spec=spec.model_copy(update={"env": {**spec.env, **self._env}}),
            spec_hash=spec.hash(),
        )
        await self._prepare(order)
        landed = self._landing[replica] = asyncio.get_running_loop().create_future()
        try:
            await self._carrier.start(order, "started by hand", awaiting=awaiting, correlation_id=correlation_id)
            async with asyncio.timeout(_LANDED):
                row: HostRow = await landed
            self._given.discard(replica)  # the keeper's row holds the name now
            return row
        except (Invalid, Missing, Refused):
            self._carrier.ports.drop(replica)  # nothing was started
            self._given.discard(replica)
            raise
        except TimeoutError as error:
            raise Waiting(f"{replica} has no process yet", code="START_SLOW", hint="list the processes") from error
        finally:
            del self._landing[replica]

    def check_allowed(self) -> None:
        """Raises Refused (PRUNES_ALL) where nothing stays that Git does not own."""
        held = self._carrier.assignment
        if held is not None and held.policy.stop_manual:
            raise Refused(
                "this cluster keeps nothing that Git does not own (sync.prune: all)",
                code="PRUNES_ALL",
                hint="commit an Instance instead",
            )

    def seen(self, row: HostRow | None) -> None:
        """A row changed: somebody may wait for it."""
        if row is None or (landed := self._landing.get(row.replica)) is None or landed.done():
            return
        if row.pid is not None or row.state in _OVER:
            landed.set_result(row)

    def _name(self, package: str) -> str:
        taken = self._given | {name for name in self._table.rows if is_by_hand(name)}
        number = 0
        while (name := f"{BY_HAND}.{package}.{number}") in taken:
            number += 1
        self._given.add(name)
        return name

    async def _prepare(self, order: ReplicaOrder) -> None:
        """The environment its packages share is made, if they need one."""
        self._carrier.installed = dict(self._edges.installer.installed())
        digests = needed(order)
        name = environment_of(self._carrier.installed[d] for d in digests if d in self._carrier.installed)
        if name and name not in self._edges.installer.environments():
            await self._edges.installer.prepare(digests)
