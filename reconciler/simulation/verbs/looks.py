"""What people see, and what they wait for."""

from __future__ import annotations

import asyncio

from reconciler import answers
from reconciler.planning import render
from reconciler.simulation.verbs import Verbs
from reconciler.simulation.world import World

LIMIT = 600.0  # simulated seconds that `settle` waits
NOTICE = 0.5  # … at least, so that what the line before did has been noticed


class Looks:
    """What runs, what is planned, who has which lease; what has changed since the last look."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._seen: dict[tuple[str, str], int | None] = {}

    def verbs(self) -> Verbs:
        return (
            (r"settle(?: within ([\d.]+)s)?", self._settle),
            (r"wait ([\d.]+)s", self._wait),
            (r"show", self._show),
            (r"processes", self._processes),
            (r"leases", self._leases),
            (r"plan", self._plan),
        )

    async def _settle(self, within: str | None) -> str:
        limit = float(within) if within else LIMIT
        await asyncio.sleep(NOTICE)
        try:
            await self.world.until(self._settled, limit)
        except TimeoutError:
            return f"not settled after {limit:g}s\n{await self._plan()}"
        return ""

    def _settled(self) -> bool:
        leader = self.world.leader()
        if leader is None or leader.board.source is None:
            return False
        if leader.board.source.rollback is not None:
            return answers.settled(leader.board)
        return leader.board.desired is self.world.source.sourced.desired and answers.converged(leader.board)

    async def _wait(self, seconds: str) -> None:
        start = self.world.clock.now()
        await self.world.until(lambda: self.world.clock.now() - start >= float(seconds), float(seconds) + 1)

    async def _show(self) -> str:
        """What really runs, as an omniscient observer sees it: one line a machine."""
        lines = []
        for name, node in sorted(self.world.nodes.items()):
            rows = sorted(node.machine.rows.values(), key=lambda row: row.replica)
            words = [
                f"{row.replica} {row.order.component.name}@{row.order.component.version}"
                + ("" if row.healthy else f" {row.state}, not healthy")
                + (f" restarts={row.restarts}" if row.restarts else "")
                for row in rows
            ]
            lines.append(f"{name}: {'; '.join(words) or ('nothing' if node.machine.up else 'off')}")
        return "\n".join(lines)

    async def _processes(self) -> str:
        """What was started and what is gone since this was asked last; whatever is neither kept its process."""
        now: dict[tuple[str, str], int | None] = {
            (row.replica, name): row.pid
            for name, node in self.world.nodes.items()
            for row in node.machine.rows.values()
            if row.pid is not None
        }
        before, self._seen = self._seen, now
        kept = [replica for (replica, node), pid in sorted(now.items()) if before.get((replica, node)) == pid]
        new = [
            f"{replica} on {node}" for (replica, node), pid in sorted(now.items()) if before.get((replica, node)) != pid
        ]
        gone = [f"{replica} on {node}" for (replica, node) in sorted(before) if (replica, node) not in now]
        words = (("kept", kept), ("new", new), ("gone", gone))
        return "\n".join(f"{word} {len(found)}: {', '.join(found)}" for word, found in words if found)

    async def _leases(self) -> str:
        """One line for each replica that an agent reports with a lease."""
        agents = [(name, node.agent) for name, node in sorted(self.world.nodes.items()) if node.agent is not None]
        said = [
            f"{name}: {row.replica} {row.lease}"
            for name, agent in agents
            for row in sorted(agent.book.whole().replicas, key=lambda row: row.replica)
            if row.lease is not None
        ]
        return "\n".join(said) or "none"

    async def _plan(self) -> str:
        leader = self.world.leader()
        if leader is None or leader.board.plan is None:
            return "nobody leads"
        return render.text(leader.board.plan)
