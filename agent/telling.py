"""What is true of each replica, told to the report and to Consul; what was started by hand is told apart."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from agent.apply import Applier
from agent.carry import Carrier
from agent.checks import entry
from agent.clock import Clock
from agent.edges import NodeSettings
from agent.leases.leases import Leases
from agent.probes import Probes
from agent.register import Registrar
from agent.report import ReportBook
from agent.status import status_row
from agent.steps import is_by_hand
from agent.table import HostTable
from agent.wire import ReplicaStatus


class Telling:
    """Makes a replica's row from its order, its host, its probe and what failed."""

    def __init__(
        self,
        settings: NodeSettings,
        clock: Clock,
        *,
        carrier: Carrier,
        table: HostTable,
        applier: Applier,
        probes: Probes,
        leases: Leases,
        book: ReportBook,
        registrar: Registrar,
    ) -> None:
        self._settings, self._clock = settings, clock
        self._carrier, self._table, self._applier, self._probes = carrier, table, applier, probes
        self._leases, self._book, self._registrar = leases, book, registrar
        self.by_hand: dict[str, ReplicaStatus] = {}

    def tell(self, replica: str) -> None:
        """The replica's row in the report, and its entry in Consul, are what is true now."""
        clock = self._clock
        row = status_row(
            replica,
            self._carrier.orders.get(replica),
            self._table.rows.get(replica),
            failure=self._applier.failures.get(replica),
            probe=self._probes.result(replica),
            before=self._book.rows.get(replica) or self.by_hand.get(replica),
            ordered=self._carrier.ordered.specs.get(replica),
            lease=self._leases.status(replica),
            now=clock.now(),
        )
        if is_by_hand(replica):
            self._tell_by_hand(replica, row)
        elif row is None:
            self._book.remove(replica)
            self._registrar.hide(replica)
        elif self._book.put(row):
            since = clock.wall() - timedelta(seconds=max(0.0, clock.now() - row.since))
            settings = self._settings
            shown = partial(
                entry, row, cluster=settings.cluster, node=settings.node, address=settings.address, since=since
            )
            self._registrar.show(replica, shown)

    def _tell_by_hand(self, replica: str, row: ReplicaStatus | None) -> None:
        """Told apart from what Git owns, and not in Consul."""
        if row is not None:
            self.by_hand[replica] = row
        else:
            self.by_hand.pop(replica, None)
        self._book.say(by_hand=[self.by_hand[name] for name in sorted(self.by_hand)])
