"""What happens to machines, to what runs there, and to the network between them and the controllers."""

from __future__ import annotations

from reconciler.simulation.clauses import full
from reconciler.simulation.machine import Machine
from reconciler.simulation.verbs import Verbs
from reconciler.simulation.world import World


class Machines:
    """Controllers, agents, disks, processes, packages and ways that come, go, fail and are whole again."""

    def __init__(self, world: World) -> None:
        self.world = world

    def verbs(self) -> Verbs:
        return (
            (r"controller (\S+)", self._controller),
            (r"crash controller (\S+)", self.world.crash_controller),
            (r"crash agent (\S+)", self.world.crash_agent),
            (r"start agent (\S+)", self._start_agent),
            (r"forget (\S+)", self._forget),
            (r"disk of (\S+) (full|free)", self._disk),
            (r"power off (\S+)", self.world.power_off),
            (r"power on (\S+)", self._power_on),
            (r"cut (\S+) from controllers", self._cut_controllers),
            (r"cut (\S+) from consul", self._cut_consul),
            (r"cut (\S+) and its consul", self._cut_its_consul),
            (r"cut (\S+)", self._cut),
            (r"heal (\S+)", self._heal),
            (r"kill (\S+)", self._kill),
            (r"stop (\S+)", self._stop),
            (r"break (\S+)", self._break),
            (r"mend (\S+)", self._mend),
            (r"lose (\S+)", self._lose),
            (r"upload (\S+)", self._upload),
        )

    async def _controller(self, name: str) -> None:
        self.world.start_controller(name)

    async def _start_agent(self, name: str) -> None:
        self.world.start_agent(name)

    async def _forget(self, name: str) -> None:
        """The agent starts again and finds that its ledger makes no sense."""
        await self.world.crash_agent(name)
        self.world.lose_ledger(name)
        self.world.start_agent(name)

    async def _disk(self, name: str, word: str) -> None:
        node = self.world.nodes[name]
        node.machine.disk_full = node.ledger.full = word == "full"

    async def _power_on(self, name: str) -> None:
        self.world.power_on(name)

    async def _cut(self, name: str) -> None:
        self.world.cut(name, consul=True)

    async def _cut_controllers(self, name: str) -> None:
        self.world.cut(name, consul=False)

    async def _cut_consul(self, name: str) -> None:
        self.world.cut_consul(name)

    async def _cut_its_consul(self, name: str) -> None:
        self.world.cut_consul(name, its_own=True)

    async def _heal(self, name: str) -> None:
        self.world.heal(name)

    async def _kill(self, replica: str) -> None:
        self._machine_of(replica).kill_host(replica)

    async def _stop(self, replica: str) -> None:
        self._machine_of(replica).stop_by_hand(replica)

    async def _break(self, package: str) -> None:
        for node in self.world.nodes.values():
            node.machine.broken.add(full(package))

    async def _mend(self, package: str) -> None:
        for node in self.world.nodes.values():
            node.machine.mend(full(package))

    async def _lose(self, package: str) -> None:
        self.world.missing.add(full(package))

    async def _upload(self, package: str) -> None:
        self.world.missing.discard(full(package))

    def _machine_of(self, replica: str) -> Machine:
        return next(node.machine for node in self.world.nodes.values() if replica in node.machine.rows)
