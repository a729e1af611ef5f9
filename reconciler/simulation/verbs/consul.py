"""What happens to Consul, to its sessions and to its locks."""

from __future__ import annotations

from agent import keys
from reconciler.simulation.verbs import Verbs
from reconciler.simulation.world import CLUSTER, World


class Consul:
    """Consul's servers, as somebody treats them who may do anything to them."""

    def __init__(self, world: World) -> None:
        self.world = world

    def verbs(self) -> Verbs:
        return (
            (r"consul (away|back)", self._consul),
            (r"consul (stops|runs)", self._consul_servers),
            (r"wipe consul", self._wipe),
            (r"revoke (\S+)", self._revoke),
            (r"tamper (\S+)", self._tamper),
        )

    async def _consul(self, word: str) -> None:
        self.world.servers.vanish(word == "away")

    async def _consul_servers(self, word: str) -> None:
        self.world.servers.stop(word == "stops")

    async def _wipe(self) -> None:
        self.world.servers.wipe()

    async def _revoke(self, name: str) -> None:
        """Somebody ends the session under which a node holds its leases."""
        for session in list(self.world.store.sessions.values()):
            if session.name == f"tdie leases of {name}":
                self.world.store.destroy_session(session.id)

    async def _tamper(self, replica: str) -> None:
        """Somebody deletes the lock of a replica."""
        self.world.store.delete(keys.lease(CLUSTER, replica))
