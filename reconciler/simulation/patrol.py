"""What must be so at any time of a history wherever it was calm for long enough, not only at its end."""

from __future__ import annotations

import asyncio

from agent import keys
from agent.steps import is_by_hand
from reconciler.simulation.machine import LIVE
from reconciler.simulation.network import Node
from reconciler.simulation.truth import Truth
from reconciler.simulation.world import CLUSTER, Controller, World

ROUND = 5.0  # seconds between looks
ELECTED = 60.0  # seconds within which a controller that can leads, if no other does
SHOWN = 120.0  # … and within which Consul shows what runs on a node that reaches it


class Patrol:
    """Goes round for ever; says once what it finds, and then waits for as long again."""

    def __init__(self, truth: Truth, world: World) -> None:
        self._truth, self._world = truth, world
        self._calm_since: dict[str, float] = {}  # by life of an agent or a controller
        self._missing_since: dict[str, float] = {}  # by service id
        self._led_at = 0.0

    async def walk(self) -> None:
        while True:
            await asyncio.sleep(ROUND)
            if self._world.servers.disturbed():
                self._calm_since.clear()
                self._missing_since.clear()
                continue
            self._controllers()
            for name, node in self._world.nodes.items():
                if self._calm(node.process.name, _is_well(node), SHOWN):
                    self._shown(name, node)

    def _calm(self, life: str, well: bool, long: float) -> bool:
        now = self._truth.clock.now()
        if not well:
            self._calm_since.pop(life, None)
            return False
        return now - self._calm_since.setdefault(life, now) >= long

    def _controllers(self) -> None:
        found = [each for each in self._world.controllers.values() if self._calm(each.id, _can_lead(each), ELECTED)]
        now = self._truth.clock.now()
        if any(each.loop.board.term is not None and _can_lead(each) for each in self._world.controllers.values()):
            self._led_at = now
        elif found and now - self._led_at > ELECTED:
            self._truth.broken("one controller leads", f"{found[0].id} could for {ELECTED:g} s, and nobody does")
            self._calm_since.clear()

    def _shown(self, name: str, node: Node) -> None:
        now, services = self._truth.clock.now(), self._world.store.services
        for row in node.machine.rows.values():
            service = keys.replica_service_id(CLUSTER, name, row.replica)
            if service in services or row.state not in LIVE or is_by_hand(row.replica):
                self._missing_since.pop(service, None)
            elif now - self._missing_since.setdefault(service, now) > SHOWN / 2:
                self._truth.broken("Consul shows what runs", f"{service} is not there")
                self._missing_since.pop(service)


def _is_well(node: Node) -> bool:
    consul = node.consul
    if node.agent is None or consul is None or node.process.paused or not node.machine.runs:
        return False
    return not (consul.cut or consul.deaf or node.ledger.full)


def _can_lead(controller: Controller) -> bool:
    consul = controller.consul
    return not (controller.process.paused or consul.cut or consul.deaf)
