"""Who subscribes to what, told to the agents through Consul before they are told to run it."""

from __future__ import annotations

from collections.abc import Mapping

from agent import keys
from agent.bus.table import Table
from agent.consul.protocol import Consul, TxnOp
from agent.sdk.message import Subscription
from reconciler.execution import proven
from reconciler.model.desired import InstanceSpec


class Topics:
    """Writes the table of subscriptions when Git says something else than Consul. One for each leadership."""

    def __init__(self, cluster: str, session: str, *, consul: Consul) -> None:
        self._cluster, self._session, self._consul = cluster, session, consul
        self._written: tuple[bytes, ...] | None = None

    async def publish(self, instances: Mapping[str, InstanceSpec]) -> None:
        """Consul holds the table of these instances; a cluster without messages has none."""
        parts = table_of_instances(instances).parts()
        if parts == self._written:
            return
        held = await self._consul.get_all(keys.bus_tables(self._cluster))
        talks = held or any(i.spec.subscribe or i.spec.publisher for i in instances.values())
        if talks and tuple(entry.value for entry in held) != parts:
            await self._write(parts, len(held))
        self._written = parts

    async def _write(self, parts: tuple[bytes, ...], held: int) -> None:
        if len(parts) > proven.MOST_OPS:
            raise ValueError(f"the table of subscriptions has {len(parts)} parts; {proven.MOST_OPS} fit")
        ops = [TxnOp("set", keys.bus_table(self._cluster, n), part) for n, part in enumerate(parts)]
        ops += [TxnOp("delete", keys.bus_table(self._cluster, n)) for n in range(len(parts), held)]
        # Few enough to be one transaction: agents never read half a table.
        await proven.write(self._consul, proven.leads(self._cluster, self._session), ops)


def table_of_instances(instances: Mapping[str, InstanceSpec]) -> Table:
    """What all instances of a commit subscribe to."""
    talking = {name: instance for name, instance in instances.items() if instance.spec.subscribe}
    return Table(
        {name: tuple(Subscription(s.topic, s.type) for s in i.spec.subscribe) for name, i in talking.items()},
        {i.moved_from: name for name, i in talking.items() if i.moved_from},
    )
