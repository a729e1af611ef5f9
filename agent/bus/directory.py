"""Who subscribes, and where their replicas are, from Consul. When Consul is away, what it said last holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping

import structlog

from agent import keys
from agent.bus.store import Store
from agent.bus.table import Table, table_of
from agent.clock import Clock
from agent.consul.protocol import Consul
from agent.errors import TdieError, Waiting

log = structlog.get_logger("bus")

FRESH = 3.0  # seconds for which an answer is used again
WAIT = 55.0
_PAUSES = (1.0, 15.0)  # seconds after trouble: first, longest
_TABLE, _NODES = "table", "nodes"  # names of what is remembered


class ConsulDirectory:
    """Implements Directory: replicas whose checks all pass, at nodes whose agent registered its API."""

    def __init__(self, cluster: str, node: str, *, consul: Consul, store: Store, clock: Clock) -> None:
        self._cluster, self._node = cluster, node
        self._consul, self._store, self._clock = consul, store, clock
        self._known: dict[str, dict[str, str]] = {}  # instance → node → API
        self._asked: dict[str, float] = {}

    async def nodes(self, instance: str) -> Mapping[str, str]:
        now = self._clock.now()
        if now - self._asked.get(instance, -FRESH) >= FRESH:
            self._asked[instance] = now
            await self._ask(instance)
        return self._known.get(instance, {})

    async def load(self) -> Table | None:
        """What was remembered of an earlier life: the table, or None if it never was read."""
        table, nodes = await self._store.do(lambda file: (file.fact(_TABLE), file.fact(_NODES)))
        self._known = json.loads(nodes) if nodes else {}
        return table_of([part.encode() for part in json.loads(table)]) if table else None

    async def watch(self, know: Callable[[Table], None]) -> None:
        """`know` is told the table whenever it was read, for ever. No table at all says nothing: the last one holds."""
        index, pause, last = 0, _PAUSES[0], b""
        while True:
            try:
                index, found = await self._consul.watch_all(keys.bus_tables(self._cluster), index, WAIT)
                parts = [entry.value for entry in found]
                if parts:
                    know(table_of(parts))
                    if (text := json.dumps([part.decode() for part in parts])).encode() != last:
                        last = text.encode()
                        await self._remember(_TABLE, text)
                pause = _PAUSES[0]
            except TdieError as error:
                log.info("who subscribes cannot be read", error=str(error))
                await asyncio.sleep(pause)
                pause = min(_PAUSES[1], pause * 2)

    async def _ask(self, instance: str) -> None:
        try:
            _, replicas = await self._consul.watch_service(instance, self._cluster, 0, 0.0)
            _, agents = await self._consul.watch_service(keys.AGENT_SERVICE, self._cluster, 0, 0.0)
        except TdieError as error:
            log.info("where replicas are cannot be read", instance=instance, error=str(error))
            return
        apis = {agent.meta.get(keys.NODE_META, ""): agent.meta.get(keys.API_META, "") for agent in agents}
        there = {entry.meta.get(keys.NODE_META, "") for entry in replicas if entry.passing}
        found = {node: api for node in there if node != self._node and (api := apis.get(node, ""))}
        if found != self._known.get(instance):
            self._known[instance] = found
            await self._remember(_NODES, json.dumps(self._known))

    async def _remember(self, name: str, text: str) -> None:
        try:
            await self._store.do(lambda file: file.remember(name, text))
        except Waiting as error:
            log.warning("not remembered", what=name, error=str(error))
